"""Checks a host or a site."""
