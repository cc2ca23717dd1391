"""Replays the record of a run to trackers."""
