"""The registry's commands: tree, log, show, diff, verify, sign, push, pull and what looks after them."""
