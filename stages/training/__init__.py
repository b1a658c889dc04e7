"""One stage's run: its folder, trainers, checkpoints, metrics and health, from the plan to an adapter."""
