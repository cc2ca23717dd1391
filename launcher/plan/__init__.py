"""The plan of a run: batch, memory, cost, data."""
