"""Where adapters come from: content-addressed records of stages and merges, offline first.

record         one adapter's lineage; its digest is the adapter's identity
store/         objects, names and statements on this disk
trust/         who says what: signatures, revocations, what is believed
lineage/       what follows from records: the tree, scores beside each other, lock files
import_peft    adapters made elsewhere
maintenance/   verify, gc, pins
hub/           the same over the Hugging Face Hub

Does no algebra: digests and headers are all it knows of weights.
"""
