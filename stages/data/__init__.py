"""A stage's rows as people look at them: counts and checks, and the prompts that come of them."""
