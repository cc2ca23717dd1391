"""Measures the tuned model against its base."""
