"""Rationales from a teacher's endpoint: asked for, verified, kept on file."""
