"""Rows: from a file, a folder or the Hub to questions, gold answers and worked solutions.

readers      files and datasets as the field writes them
columns      which text of a record is meant
dataset      the rows a config names, parsed, counted, and what became of them
contamination  questions that are trained on and scored on

Training and evaluation load through here. Knows nothing of models, adapters or prompts.
"""
