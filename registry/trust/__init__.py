"""Who said what of an adapter, and who is believed: keys, signatures, revocations and other statements."""
