"""LoRA adapters as files and as layers on a frozen base; no registry, no merging.

spec scaling targets names placement   what an adapter's config and names say of the base's modules
header tensors stream delta            its numbers, read and written
stack                                  adapters attached to a model, one of them training
hub                                    files of a repository at a commit
base/                                  the frozen base itself
"""
