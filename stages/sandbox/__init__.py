"""The embedded default: a tiny base model and a generator of word problems, for runs of minutes on two cores."""
