"""Adapter algebra: files in, files out, every error computed before a byte is written. No network, no registry.

plan inputs        what is asked for, and every refusal, from headers alone
compose/ fold/     one adapter; a checkpoint
methods/           how deltas are combined where they are not summed
compare/           how adapters interfere
calibrate/         what prompts say of a base: moments, logits
factor_reader lowrank module_pool   the arithmetic they share
"""
