"""What every room shares: errors, configuration, digests, atomic files and the console."""
