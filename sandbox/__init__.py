"""The embedded default: a tiny base model and a generator of word problems, for runs of minutes on two cores.

Knows how the base was made and what its problems are; not how anything is trained or scored.
"""

from pathlib import Path

SANDBOX = "sandbox"
"""What stands for the embedded base, or its problems, in the place of a path."""
BASE_REPO = "plyfold/sandbox-base"
"""What records call the embedded base; no such repository is asked for while it is the one that lies here."""
BASE_FOLDER = Path(__file__).parent / "base"
