"""The verbs of the command line: parsing and printing only."""
