"""Where adapters come from: content-addressed records of stages and merges, offline first."""
