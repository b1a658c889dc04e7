"""A teacher's solution as steps and an answer: parsed, its numbers found, what gives the answer away told."""
