"""Packaged configurations, by name: `plyfold train -c sandbox`."""
