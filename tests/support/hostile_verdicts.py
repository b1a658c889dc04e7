"""Hostile input goes through every door of the registry: accepted and right, or one clear refusal, and nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plyfold.core import errors
from plyfold.registry.hub import places as hub_places
from plyfold.registry.lineage import graph, lockfile, scores
from plyfold.registry.maintenance import gc
from plyfold.registry.maintenance.verify import verify
from plyfold.registry.record import RECORD_FILE, parse_record
from plyfold.registry.trust import revocation, statements

from . import hostile_records, hostile_stores
from .hostile_stores import Case, digest_of
from .hostile_truth import lawful, strictly, whole
from .sound_registry import REPO, REVISION, make_registry

KINDS = [*hostile_records.KINDS, *hostile_stores.KINDS]
MAX_MESSAGE = 2000
"""Characters of an error's text; a file may not fill the screen."""
_template: dict[Path, Path] = {}


class WrongError(Exception):
    """What plyfold did is neither right nor a refusal."""


def verdict(folder: Path, kind: str, seed: int) -> str:
    """Break one thing in an empty folder, try every door, and say what came of it.

    Returns:
        `right`, the name of the error class that refused it, or a sentence that starts with `FAULT`.
    """
    case = new_case(folder, seed)
    try:
        return _outcome(case, kind)
    except WrongError as error:
        return f"FAULT {error}"
    except Exception as error:
        return f"FAULT {type(error).__name__}: {str(error)[:200]!r}"
    finally:
        for file in case.open_files:
            file.close()


def new_case(folder: Path, seed: int) -> Case:
    """A sound registry in an empty folder, copied from one made at the first call."""
    made = _template.get(folder.parent)
    if made is None:
        made = _template[folder.parent] = folder.parent / "template"
        if not made.exists():
            make_registry(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / hostile_stores.CANARY).parent.mkdir()
    (folder / hostile_stores.CANARY).write_bytes(b"stays as it is")
    return Case(folder, random.Random(seed))


def _outcome(case: Case, kind: str) -> str:
    if kind in hostile_records.KINDS:
        return _record(case, kind)
    if kind in hostile_stores.KINDS:
        return _store(case, kind)
    from . import hostile_hub  # asks for the Hub's library

    with unchanged(case.root, but=[case.root / "away"]):
        if kind in hostile_hub.HUB_KINDS:
            return hostile_hub.lying_hub(case, kind)
        return hostile_hub.hostile_repository(case, kind)


# ---- what is broken


def _record(case: Case, kind: str) -> str:
    """The record's bytes through the parser, as an object of the store, and as a folder to be taken in."""
    store = case.store
    stage = store.read_record(store.ref("toy", 2))
    value = json.loads((stage.path / RECORD_FILE).read_bytes())
    data = hostile_records.record_bytes(kind, value, case.chance)
    expected = lawful(data)
    outcome = tried("parse_record", lambda: parse_record(data, "here"))
    if (outcome == "right") != expected:
        raise WrongError(f"parse_record: {outcome}, though the record is {'lawful' if expected else 'not lawful'}")
    if expected and (strictly(data) != parse_record(data).to_json() or parse_record(data).digest() != digest_of(data)):
        raise WrongError("parse_record: accepted with another meaning")
    digest = digest_of(data)
    sound = expected and whole(stage.path, strictly(data))
    staged = case.root / "registry" / "tmp" / "staged"
    shutil.copytree(stage.path, staged)
    (staged / RECORD_FILE).chmod(0o644)
    (staged / RECORD_FILE).write_bytes(data)
    placed = store.objects / digest.removeprefix("sha256:")
    shutil.copytree(staged, placed, dirs_exist_ok=True)
    with unchanged(case.root):
        outcome = tried("load", lambda: store.load(digest))
        (case.root / "registry" / "refs" / "toy" / "2" / "latest").write_text(f"{digest}\n")
    if (outcome == "right") != sound:
        raise WrongError(f"load: {outcome}, though the object is {'sound' if sound else 'not sound'}")
    survey(case)
    shutil.rmtree(placed)
    with unchanged(case.root, but=[staged, placed, case.root / "registry" / "log.jsonl"]):
        adopted = tried("adopt", lambda: store.adopt(staged, digest))
    if (adopted == "right") != sound or placed.exists() != sound:
        raise WrongError(f"adopt: {adopted}, though the folder is {'sound' if sound else 'not sound'}")
    return outcome


def _store(case: Case, kind: str) -> str:
    """A file of the registry through everything that reads it."""
    hostile_stores.KINDS[kind](case)
    if (opened := tried("open", lambda: case.store)) != "right":  # a link where the registry keeps what is its own
        return opened
    outcomes = [survey(case)]
    if case.target is not None:
        outcomes.insert(0, _load(case, case.target))
    if kind == "curriculum.lock.json":
        outcomes.insert(0, _lock(case))
    if kind == "locations.json":
        base = (REPO, REVISION)
        outcomes.insert(0, tried("base_path", lambda: case.store.base_path(*base)))
        tried("remember_base", lambda: case.store.remember_base(*base, case.root))
    if kind in ("leftovers", "leases", "refs: names", "attest: folders", "log.jsonl"):
        with unchanged(case.root, but=[case.root / "registry"]):
            outcomes.insert(0, tried("gc", lambda: gc.delete(case.store, grace_s=0.0)))
            for digest in set(case.store.digests()):
                tried("load", lambda digest=digest: case.store.load(digest))  # type: ignore[misc]
    return next((outcome for outcome in outcomes if outcome != "right"), "right")


def _load(case: Case, target: Path) -> str:
    digest = f"sha256:{target.name}"
    with unchanged(case.root):
        outcome = tried("load", lambda: case.store.load(digest))
    record = target / RECORD_FILE
    plain = target.is_dir() and record.exists() and stat.S_ISREG(record.lstat().st_mode)
    sound = plain and record.stat().st_size <= 1_000_000 and _whole(target)
    if outcome == "right" and not sound:
        raise WrongError("load: accepted, though the folder is not what its record says")
    if outcome != "right" and sound and not target.is_symlink():
        raise WrongError(f"load: {outcome}, though the folder is sound")
    if target.is_dir() and not target.is_symlink():
        staged = case.root / "registry" / "tmp" / "staged"
        target.rename(staged)
        with unchanged(case.root, but=[staged, target, case.root / "registry" / "log.jsonl"]):
            adopted = tried("adopt", lambda: case.store.adopt(staged, digest))
        if (adopted == "right") != sound:
            raise WrongError(f"adopt: {adopted}, though the folder is {'sound' if sound else 'not sound'}")
        if not target.exists():
            staged.rename(target)
    return outcome


def _whole(target: Path) -> bool:
    data = (target / RECORD_FILE).read_bytes()
    return digest_of(data) == f"sha256:{target.name}" and lawful(data) and whole(target, strictly(data))


def _lock(case: Case) -> str:
    with unchanged(case.root):
        outcome = tried("read_lock", lambda: lockfile.read_lock(case.lock_file))
        tried("differences", lambda: lockfile.lock_differences(lockfile.read_lock(case.lock_file), case.store))
        tried("plan_sweep", lambda: gc.plan_sweep(case.store, lock_files=[case.lock_file], grace_s=0))
    if outcome == "right":
        value = strictly(case.lock_file.read_bytes())
        if lockfile.read_lock(case.lock_file).to_json() != _filled(value):
            raise WrongError("read_lock: accepted with another meaning")
    return outcome


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    """A lock with the fields that may be left out."""
    stages = {
        number: {"name": None, "location": None, **stage} if isinstance(stage, dict) else stage
        for number, stage in value["stages"].items()
    }
    return {"schema": 1, **value, "stages": stages}


# ---- every door that looks at a registry


def survey(case: Case) -> str:
    """Ask the registry everything that changes nothing; the first refusal, or `right`."""
    store = case.store

    def everywhere(ask: Callable[[str], Any]) -> Callable[[], Any]:
        return lambda: [ask(digest) for digest in store.digests()]

    questions: dict[str, Callable[[], Any]] = {
        "curricula": lambda: [store.default_curriculum(name) for name in store.curricula()],
        "stages": lambda: [store.stages(name) for name in store.curricula()],
        "merges": lambda: [store.merges(name) for name in store.curricula()],
        "tree": lambda: _sayable([graph.tree(store, name).to_json() for name in store.curricula()]),
        "stale": lambda: [graph.stale(store, name) for name in store.curricula()],
        "chain": lambda: graph.chain(store, store.ref("toy", 3)),
        "find": lambda: [graph.find(store, name) for name in ("2", "brevity", "toy:2", "toy-s1.s2.s3")],
        "verify": lambda: _sayable([check.to_json() for check in verify(store)]),
        "plan_sweep": lambda: gc.plan_sweep(store, grace_s=0.0),
        "revocations": lambda: revocation.revocations(store, store.digests()),
        "statements": everywhere(lambda digest: statements.statements(store, digest)),
        "descendants": lambda: revocation.descendants(store, store.digests()[0]),
        "attestations": everywhere(store.attestations),
        "scores": lambda: scores.scores(store, "toy"),
        "held": lambda: hub_places.known_locations(store),
        "make_lock": lambda: lockfile.make_lock(store, "toy"),
        "log": lambda: _sayable(store.log()),
    }
    with unchanged(case.root):
        outcomes = [tried(name, question) for name, question in questions.items()]
    return next((outcome for outcome in outcomes if outcome != "right"), "right")


def tried(name: str, ask: Callable[[], Any]) -> str:
    """`right`, or the class of the one clear refusal.

    Raises:
        WrongError: Another exception, or a refusal that says too little or too much.
    """
    try:
        ask()
    except errors.PlyfoldError as error:
        if len(str(error)) > MAX_MESSAGE:
            raise WrongError(f"{name}: an error of {len(str(error)):,} characters") from error
        if not error.where and not error.found:
            raise WrongError(f"{name}: a refusal that names no place: {error.what}") from error
        return type(error).__name__
    except Exception as error:
        raise WrongError(f"{name}: {type(error).__name__}: {str(error)[:200]!r}") from error
    return "right"


@contextmanager
def unchanged(root: Path, but: list[Path] | None = None) -> Iterator[None]:
    """Nothing under `root` is made, removed or rewritten, except below some paths.

    Raises:
        WrongError: Something is.
    """
    left_out = [*(but or []), root / "registry" / "cache", root / "registry" / "locks"]
    before = _listing(root, left_out)
    yield
    after = _listing(root, left_out)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed and not (but is None and changed == ["registry/refs/toy/2/latest"]):
        raise WrongError(f"changed on disk: {', '.join(changed[:5])}")


def _listing(root: Path, left_out: list[Path]) -> dict[str, tuple[int, ...]]:
    found = {}
    for at, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(at, name) not in left_out]
        for name in [*folders, *files]:
            path = Path(at, name)
            if path not in left_out:
                status = path.lstat()
                times = (status.st_mtime_ns,) if not stat.S_ISDIR(status.st_mode) else ()
                found[os.path.relpath(path, root)] = (stat.S_IFMT(status.st_mode), status.st_size * bool(times), *times)
    return found


def _sayable(value: Any) -> None:
    json.dumps(value, ensure_ascii=False, allow_nan=False)
