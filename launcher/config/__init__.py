"""Settings: overrides in, one typed RunConfig out."""
