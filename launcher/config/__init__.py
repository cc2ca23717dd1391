"""Settings: words in, one typed RunConfig out."""
