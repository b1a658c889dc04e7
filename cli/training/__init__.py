"""`train`, `data` and `rollouts`, with the tables they print."""
