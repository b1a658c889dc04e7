"""The files a teacher's rationales are kept in: whole lines that a kill may cut and a next run reads on from.

    OUT.jsonl            {question, answer, gold, index, attempt, tokens}: solutions in GSM8K's form, `#### gold` last
    OUT.rejected.jsonl   every other completion with the reason it was not kept
    OUT.manifest.json    teacher, prompt, sampling, questions, date, counts

Knows nothing about endpoints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...core.console import warn
from ...core.disk.digest import sha256_file
from ...core.disk.files import write_bytes, write_json
from ...core.errors import ConflictError, IntegrityError
from ...core.reading.strict_json import parse_json, read_json, read_object

REFUSED = "refused by the endpoint"
"""Reason of a line without a completion: the teacher was not asked, so that it counts as no attempt."""


def rejected_path(out: Path) -> Path:
    """Where completions go that are not kept."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def manifest_path(out: Path) -> Path:
    """Where it stands what the file is."""
    return out.with_name(f"{out.stem}.manifest.json")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; one without its line end was cut by a kill.

    Raises:
        IntegrityError: A complete line is no row of these files.
    """
    if not path.is_file():
        return []
    needed = ("question", "index", "tokens", "reason" if path.stem.endswith(".rejected") else "answer")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = parse_json(line)
            counts = [row["tokens"]["prompt"], row["tokens"]["completion"], row["index"]]
            texts = [row["question"], row[needed[-1]]]
            sound = all(type(each) is int for each in counts) and all(isinstance(each, str) for each in texts)
        except (ValueError, TypeError, KeyError):
            sound = False
        if not sound:
            raise IntegrityError(
                "a line is no row of this file",
                where=f"{path}, line {number}",
                expected=f"an object with {', '.join(needed)}",
                next_step="take the line out, or choose another -o",
            )
        rows.append(row)
    return rows


def cut_last_line(path: Path) -> None:
    """Drop what a kill left of a line, and say so."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        warn(f"{path}: its last line was cut ({len(data) - whole} bytes), dropped")
        with path.open("r+b") as file:
            file.truncate(whole)


def sort_lines(path: Path) -> None:
    """Put rows into the order of their questions: completions come in any."""
    rows = read_lines(path)
    ordered = sorted(rows, key=lambda row: row["index"])
    if rows != ordered:
        write_bytes(path, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ordered))


def require_same_teacher(out: Path, teacher: Mapping[str, Any]) -> None:
    """Refuse to add to a file whose rationales were asked for otherwise.

    Raises:
        ConflictError: Another model, prompt or sampling; or a file without a manifest.
        IntegrityError: The manifest cannot be read.
    """
    path = manifest_path(out)
    if not path.is_file():
        if out.exists():
            raise ConflictError(
                "the file is there and no manifest says whose rationales it holds",
                where=out,
                expected=path.name,
                next_step="choose another -o",
            )
        return
    try:
        known = dict(read_json(path)["teacher"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the manifest cannot be read", where=path, found=error) from error
    changed = [name for name in teacher if known.get(name) != teacher[name]]
    written = read_lines(out) or any(row["reason"] != REFUSED for row in read_lines(rejected_path(out)))
    if changed and written:  # a model's name may have been mistyped
        raise ConflictError(
            "the file holds rationales that were asked for otherwise",
            where=out,
            expected=", ".join(f"{name} {known.get(name)}" for name in changed),
            found=", ".join(f"{name} {teacher[name]}" for name in changed),
            next_step="choose another -o",
        )


def write_manifest(out: Path, about: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    """Write what the files hold now.

    Args:
        out: The rationales.
        about: Teacher and questions.
        complete: Whether every question was asked to its end.

    Returns:
        The manifest.
    """
    kept, rejected = read_lines(out), read_lines(rejected_path(out))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = manifest_path(out)
    manifest = {
        "schema": 1,
        **about,
        "plyfold": version("plyfold"),
        "created": read_object(path, "the manifest").get("created", now) if path.is_file() else now,
        "updated": now,
        "complete": complete,
        "kept": len(kept),
        "rejected": dict(Counter(row["reason"] for row in rejected).most_common()),
        "unsolved": len({row["question"] for row in rejected} - {row["question"] for row in kept}),
        "tokens": {name: sum(row["tokens"][name] for row in [*kept, *rejected]) for name in ("prompt", "completion")},
        "sha256": sha256_file(out) if kept else None,
    }
    write_json(path, manifest)
    return manifest
