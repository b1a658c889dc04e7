"""Bytes on this disk: digests, folders that appear whole or not at all, locks, and opening without following links."""
