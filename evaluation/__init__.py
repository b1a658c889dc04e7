"""Completions into scores: protocols, the grader, the runner, and statistics that say what n can tell apart."""
