"""Completions to train on: `generate` here, vLLM beside the trainer, or a vLLM server over HTTP."""
