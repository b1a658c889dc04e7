"""The registry's folder on this disk: immutable objects, names that move by compare-and-swap, an append-only log."""
