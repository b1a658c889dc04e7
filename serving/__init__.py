"""Handing variants out: a variant is a registry lookup plus a composition, served by one vLLM engine."""
