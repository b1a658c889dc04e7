"""Merge methods other than the plain sum: one file per family, all on the factors of one module at a time."""
