"""The embedded default: a tiny base model and a generator of word problems, for runs of minutes on two cores.

Knows how the base was made and what its problems are; not how anything is trained or scored.
"""
