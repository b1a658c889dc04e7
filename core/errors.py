"""The one tree of errors, each with the exit code its command ends with.

An error says what happened, where, what was expected, what was found and what to do next. Leaves also inherit the
fitting standard class, so callers who know only Python can catch them; all are picklable. What a config read from the
environment stands in them as the config spells it.
"""

from __future__ import annotations

from typing import Any

from .environment import spelt


class PlyfoldError(Exception):
    """Base of every error plyfold raises on purpose.

    Args:
        what: One sentence: what happened.
        where: File, module, row or command it happened in.
        expected: What would have been right, or the known values.
        found: What was there instead.
        next_step: A command or an act that mends it.
    """

    exit_code = 1
    kind = "failed"

    def __init__(
        self, what: str, *, where: object = "", expected: object = "", found: object = "", next_step: str = ""
    ) -> None:
        self.what = spelt(what)
        super().__init__(self.what)
        self.where = spelt(str(where))
        self.expected = spelt(str(expected))
        self.found = spelt(str(found))
        self.next_step = spelt(next_step)

    def fields(self) -> list[tuple[str, str]]:
        """The filled fields in the order they are printed."""
        rows = [("where", self.where), ("expected", self.expected), ("found", self.found), ("next", self.next_step)]
        return [(name, value) for name, value in rows if value]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {name:<9} {value}" for name, value in self.fields())])

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.found, self.next_step))


def _rebuild(cls: type[PlyfoldError], what: str, where: str, expected: str, found: str, step: str) -> PlyfoldError:
    return cls(what, where=where, expected=expected, found=found, next_step=step)


class FailedError(PlyfoldError, RuntimeError):
    """Work that started and could not be finished (exit 1)."""


class DiskFullError(PlyfoldError, OSError):
    """No room for what is to be written (exit 1)."""


class NotAllowedError(PlyfoldError, PermissionError):
    """A file or folder that this user may not read or write (exit 1)."""


class ConfigError(PlyfoldError, ValueError):
    """A key, value or command line that cannot be meant (exit 2)."""

    exit_code = 2
    kind = "config"


class NotFoundError(PlyfoldError, LookupError):
    """A stage, variant, adapter, base or file that does not exist (exit 3)."""

    exit_code = 3
    kind = "not found"


class IntegrityError(PlyfoldError, ValueError):
    """Bytes that are not what their record or their format says (exit 4)."""

    exit_code = 4
    kind = "integrity"


class ConflictError(PlyfoldError, RuntimeError):
    """Somebody else changed the same thing (exit 5)."""

    exit_code = 5
    kind = "conflict"


class GateError(PlyfoldError, RuntimeError):
    """A measured value below the bar set for it (exit 5)."""

    exit_code = 5
    kind = "gate"


class OfflineError(PlyfoldError, ConnectionError):
    """Something that only a network can bring, which is off or failed (exit 6)."""

    exit_code = 6
    kind = "offline"


class AuthError(PlyfoldError, PermissionError):
    """A token that is missing or not allowed (exit 7)."""

    exit_code = 7
    kind = "auth"


class IncompatibleError(PlyfoldError, ValueError):
    """Sound parts that do not belong together, or a feature that cannot be honoured (exit 8)."""

    exit_code = 8
    kind = "incompatible"


class BaseMismatchError(IncompatibleError):
    """Adapters, or an adapter and a base, of different base models or revisions."""


class ShapeMismatchError(IncompatibleError):
    """A module whose input or output size differs between parts."""


class UnsupportedAdapterError(IncompatibleError):
    """An adapter feature with no exact additive meaning (DoRA, bias, modules_to_save, mutating inits)."""


_NO_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""What torch's CPU allocator says, what a CUDA call says, and the libraries beside it (CUBLAS_STATUS_ALLOC_FAILED)."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch (which is not imported here) ran out of memory."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(sign in str(error) for sign in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line of 500 characters at most; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
