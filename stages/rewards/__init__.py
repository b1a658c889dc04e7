"""What a completion is paid: right before formatted before short."""
