"""`merge`: its inputs, its report, and what it registers."""
