"""Examples in, tokens, loss masks and their order out."""
