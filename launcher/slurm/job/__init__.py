"""Runs inside a job: the supervisor of an attempt."""
