"""plyfold: train a curriculum as separate QLoRA adapters, compose any stages, serve and score every variant."""

from importlib.metadata import version

__version__ = version("plyfold")
