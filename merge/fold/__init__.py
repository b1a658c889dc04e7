"""Adapters into a checkpoint: planned from headers, streamed once, resumed after a kill, checked before it is named."""
