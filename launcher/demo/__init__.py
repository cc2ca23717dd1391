"""Data and the small model of the quickstart."""
