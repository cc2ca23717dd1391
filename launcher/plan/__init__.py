"""What a run will do: batch, memory, cost, data, as one Plan."""
