"""Keeping a registry sound and small: every file against its record, and what no name leads to any more."""
