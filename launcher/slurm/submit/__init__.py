"""Puts runs into the queue and takes them out."""
