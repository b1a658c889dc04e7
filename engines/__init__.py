"""What generates: transformers and vLLM behind one protocol, vLLM's options, and processes that end together."""
