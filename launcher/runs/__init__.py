"""The run directory: its files, attempts and states."""
