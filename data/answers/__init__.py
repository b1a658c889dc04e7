"""The final answer that a text states, or none: golds, completions and teachers are read by the same rules."""
