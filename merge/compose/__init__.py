"""Adapters into one adapter: prepared and certified in factor space, then written."""
