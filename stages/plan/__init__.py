"""What a run will do, as values: rows, steps, memory, staleness, and every refusal that needs no model."""
