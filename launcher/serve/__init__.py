"""Serves the tuned model."""
