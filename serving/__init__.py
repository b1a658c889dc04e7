"""The HTTP server: one vLLM engine for the base and its variants, behind a gateway that asks for the key first."""
