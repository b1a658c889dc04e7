"""Text from elsewhere, read strictly and within bounds: JSON, YAML, interpolation."""
