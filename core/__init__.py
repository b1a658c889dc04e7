"""What every room shares: errors, configuration, the console, the environment and what it may be asked for.

Imports nothing of plyfold but itself, and no model library.
"""
