"""What follows from records: trees, stale stages, scores on equal terms, contamination, lock files, copies."""
