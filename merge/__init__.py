"""Adapter algebra: files in, files out, every error computed before a byte is written."""
