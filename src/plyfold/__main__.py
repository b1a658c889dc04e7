"""The commands `plyfold`, `merge` and `python -m plyfold`: what a Ctrl-C may meet comes after this."""

from .core.interrupts import end_quietly

end_quietly()

from .cli.main import main as main  # noqa: E402
from .cli.main import merge as merge  # noqa: E402

if __name__ == "__main__":
    main()
