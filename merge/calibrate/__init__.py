"""What a model says on prompts: input moments for activation-aware ranks, and logits before and after a merge."""
