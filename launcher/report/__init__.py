"""Curves, advice and cost of a run."""
