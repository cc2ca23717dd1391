"""Saves and loads sharded checkpoints."""
