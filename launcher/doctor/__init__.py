"""Checks a machine or a site."""
