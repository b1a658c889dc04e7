"""Merges composed again from their records, and their tensors compared. Joins the registry and merge."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.disk.digest import short
from ..core.errors import IntegrityError, NotFoundError, PlyfoldError

if TYPE_CHECKING:
    from ..merge.plan import ComposePlan
    from ..registry.record import Record
    from ..registry.store import Store


SAME_DELTA = 1e-12
"""Relative difference that float64 leaves between equal deltas."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What became of one merge that was composed again."""

    digest: str
    name: str
    """`toy merge toy-s1.s2`."""
    method: str
    verdict: Literal["same", "differs", "cannot"]
    """Whether the tensors are bit for bit those of the record."""
    reason: str = ""
    expected: str = ""
    """Tensor digest on record."""
    found: str = ""
    """Tensor digest of the replay."""
    relative: float | None = None
    """|replayed - stored| / |stored| over the deltas of all modules, Frobenius; None where they cannot be compared."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def require(self) -> None:
        """Refuse a merge that is not what its record says.

        Raises:
            IntegrityError: The replay's tensors are others.
        """
        if self.verdict == "differs":
            raise IntegrityError(
                "a merge composed again from its record has other tensors",
                where=f"{self.name} {short(self.digest)}",
                expected=self.expected,
                found=f"{self.found} ({self.reason})",
                next_step="merge its inputs again, and use that; who made this one can say how",
            )


class _CannotError(Exception):
    """A merge that cannot be carried out again, with the reason."""


def replay(store: Store, digest: str) -> Replay:
    """Compose a merge again from its record, in the store's scratch, and compare the tensors.

    Inputs, weights, method, rank or error, density, seed, numerics and dtype are those on record. On the same version
    of torch and kind of machine the result is the same bit for bit.
    """
    from ..merge.compose.prepare import prepare
    from ..merge.compose.write import write

    try:
        record = store.read_record(digest).record
    except PlyfoldError as error:
        return Replay(digest=digest, name="(unreadable)", method="", verdict="cannot", reason=error.what)
    details = record.recipe.details
    about: dict[str, Any] = {
        "digest": digest,
        "name": f"{record.curriculum} {record.label} {details.get('slug', '')}".rstrip(),
        "method": str(details.get("method", "")),
        "expected": record.weights.digest,
    }
    try:
        with _refusals():
            prepared = prepare(plan_again(store, record))
            with _scratch(store) as folder:
                composed = write(prepared, folder / "replayed")
                if composed.digest == record.weights.digest:
                    return Replay(**about, verdict="same", found=composed.digest)
                relative, reason = _compare(store, digest, composed.path, composed.digest)
    except _CannotError as error:
        return Replay(**about, verdict="cannot", reason=str(error))
    reason = "; ".join([reason, *_made_elsewhere(record)])
    return Replay(**about, verdict="differs", found=composed.digest, relative=relative, reason=reason)


def plan_again(store: Store, record: Record) -> ComposePlan:
    """The plan of a merge, from its record alone; nothing in it is taken on trust.

    Raises:
        PlyfoldError: An input that is missing or damaged, or options that no merge has.
        _CannotError: A recipe without what it takes.
    """
    from ..merge.inputs import Part
    from ..merge.plan import DTYPE_NAMES, METHODS, plan_compose

    details = record.recipe.details
    settings = details.get("settings")
    method, dtypes = details.get("method"), {torch_name: name for name, torch_name in DTYPE_NAMES.items()}
    if record.kind != "merge" or not isinstance(settings, dict):
        raise _CannotError("its record does not say how it was merged")
    if not isinstance(method, str) or method not in METHODS or record.weights.dtype not in dtypes:
        raise _CannotError(f"this version has no method {method!r} with {record.weights.dtype} tensors")
    if method == "activation":
        raise _CannotError("what its prompts did is not on record, only their digest")
    if any(parent.role != "merge_input" for parent in record.parents):
        raise _CannotError("not all of its parents are inputs")
    peft = settings.get("numerics") == "peft"
    has_rank = "rank" in METHODS[method].options and "max_error" not in settings and not peft
    return plan_compose(
        [
            Part(path=entry.path, weight=parent.scale, label=entry.record.label, digest=entry.digest)
            for parent in record.parents
            for entry in [store.load(parent.digest)]
        ],
        method=method,
        rank=_number(details, "rank", int) if has_rank else None,
        max_error=_number(settings, "max_error", float) if "max_error" in settings else None,
        dtype=dtypes[record.weights.dtype],
        density=_number(settings, "density", float) if "density" in settings else None,
        seed=_number(settings, "seed", int) if "seed" in settings else None,
        numerics="peft" if peft else "sum",
    )


def merges_of(store: Store, digests: Iterable[str] | None) -> list[str]:
    """The merges among some adapters, or all of the store; those whose record is damaged are told elsewhere."""
    found = []
    for digest in store.digests() if digests is None else digests:
        try:
            if store.read_record(digest).record.kind == "merge":
                found.append(digest)
        except PlyfoldError:
            continue
    return found


def _number(values: dict[str, Any], key: str, kind: type[int] | type[float]) -> Any:
    value = values.get(key)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind is int and not whole):
        raise _CannotError(f"its record says no {key} that can be used")
    return kind(value)


def _compare(store: Store, digest: str, replayed: Path, found: str) -> tuple[float | None, str]:
    """How far the replay is from the weights that are stored, and what to say of it."""
    from ..adapters.delta import norm
    from ..adapters.tensors import read_adapter, tensor_digest
    from ..merge.lowrank import distance

    try:
        stored = store.load(digest).path
        if tensor_digest(stored) == found:
            return 0.0, "the stored weights are those of the replay, and the record names others"
        ours, theirs = read_adapter(replayed).factors, read_adapter(stored).factors
    except PlyfoldError as error:
        return None, f"what is stored cannot be compared: {error.what}"
    if {name: module.A_RI.shape[1] for name, module in ours.items()} != {
        name: module.A_RI.shape[1] for name, module in theirs.items()
    } or any(ours[name].B_OR.shape[0] != theirs[name].B_OR.shape[0] for name in ours):
        return None, "the stored weights change other modules"
    apart = total = 0.0
    for name, one in ours.items():
        other = theirs[name]
        B_OK, C_OJ = (item.scale * item.B_OR.double() for item in (one, other))
        apart += distance(C_OJ, other.A_RI.double(), B_OK, one.A_RI.double()).frobenius ** 2
        total += norm(other) ** 2
    relative = (apart / total) ** 0.5 if total else None
    same = relative is not None and relative < SAME_DELTA
    return relative, "the same deltas in other factors" if same else "the deltas differ"


def _made_elsewhere(record: Record) -> Iterator[str]:
    here = {"torch": metadata.version("torch"), "machine": platform.machine()}
    for name, now in {"plyfold": metadata.version("plyfold"), **here}.items():
        then = record.code.version if name == "plyfold" else record.env.get(name, now)
        if then != now:
            yield f"made with {name} {then}, here is {now}"


@contextmanager
def _refusals() -> Iterator[None]:
    """What stands in the way of composing again, as its reason."""
    try:
        yield
    except NotFoundError as error:
        raise _CannotError(f"an input is not in this registry: {short(error.found) or error.where}") from error
    except PlyfoldError as error:
        raise _CannotError(error.what) from error


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """The store's own scratch, or the system's where this user may only read the store."""
    import tempfile

    if store.writable:
        with store.scratch() as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="plyfold-") as name:
            yield Path(name)
