"""`python -m plyfold` is the `plyfold` command."""

from .cli.main import main

main()
