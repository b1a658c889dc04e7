"""What a stage shows of a rationale: which steps are hidden or moved, and the prompt around them."""
