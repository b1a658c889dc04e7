"""Sound adapter folders, broken in every way a folder, a file or a number in it can be; each from a seed.

A mutation is a function of a case and a source of chance. It changes the case's folder, its weight in the merge, or
what happens to the folder after the plan was made.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .mutated_weights import WEIGHT_MUTATIONS, Case, Mutation, data_flipped, flip_bits
from .mutation_values import HUGE, NAMES, PATTERNS, SWITCHES, VALUES
from .peft_folders import write_adapter_folder

# ---- the config


def _fields(change: Callable[[dict[str, Any], random.Random], object]) -> Mutation:
    def mutate(case: Case, chance: random.Random) -> None:
        config = json.loads(case.config.read_bytes())
        change(config, chance)
        case.config.write_text(json.dumps(config))

    return mutate


def _wrong_type(config: dict[str, Any], chance: random.Random) -> None:
    config[chance.choice(list(config))] = chance.choice([*VALUES, *HUGE])


def _numbers(config: dict[str, Any], chance: random.Random) -> None:
    wild = [*HUGE, -8, 0.5, 4.0, float("nan"), float("inf"), 1e9, 999_999_999, 1e-300, -1e-300, 1e308, "4", True]
    config[chance.choice(["r", "lora_alpha"])] = chance.choice(wild)
    if chance.random() < 0.3:
        config[chance.choice(["rank_pattern", "alpha_pattern"])] = {chance.choice(PATTERNS): chance.choice(wild)}


def _patterns(config: dict[str, Any], chance: random.Random) -> None:
    field = chance.choice(["rank_pattern", "alpha_pattern"])
    chosen = {chance.choice(PATTERNS): chance.choice([config["r"], 3]) for _ in range(chance.choice([1, 1, 3]))}
    config[field] = chosen if chance.random() < 0.9 else {f"a.*{index}": 4 for index in range(100_000)}


def _targets(config: dict[str, Any], chance: random.Random) -> None:
    some = [chance.choice(PATTERNS) for _ in range(3)]
    config["target_modules"] = chance.choice([some[0], some, [], [1, None], some[:1] * 10_000, *VALUES])


def _switched_on(config: dict[str, Any], chance: random.Random) -> None:
    field = chance.choice(list(SWITCHES))
    config[field] = chance.choice(SWITCHES[field])


def _base(config: dict[str, Any], chance: random.Random) -> None:
    field = chance.choice(["base_model_name_or_path", "revision"])
    names = [
        "acme/tiny/",
        "/data/tiny",
        "..",
        "acme/\x1b[31mtiny",
        "\ud800",
        "x" * 100_000,
        "a\nb",
        "ACME/tiny",
        "main",
        "f" * 40,
    ]
    config[field] = chance.choice([*names, *VALUES])


def config_bytes(case: Case, chance: random.Random) -> None:
    text = case.config.read_bytes()
    deep = chance.choice([500, 900, 950, 980, 990, 1000, 3000, 100_000])
    nested, digits = b"[" * deep + b"]" * deep, b"9" * deep
    field = chance.choice([b"use_dora", b"auto_mapping", b"peft_type", b"r", b"rank_pattern", b"bias", b"new"])
    values = [nested, digits, b"NaN", b"-Infinity", b"1e999", b'"\\ud800"', b"5"]
    whole = [
        text[: chance.randrange(len(text))],
        text + b"x",
        text + text,
        b"\xef\xbb\xbf" + text,
        b"",
        b"null",
        nested,
    ]
    whole += [text.decode().encode("utf-16"), text.replace(b"LORA", b"L\xffRA"), text.replace(b'"r": ', b'"r": 1')]
    added = text[:-1] + b', "' + field + b'": ' + chance.choice(values) + b"}"
    case.config.write_bytes(chance.choice([added, chance.choice(whole)]))
    if chance.random() < 0.1:
        flip_bits(
            case.config, range(max(1, case.config.stat().st_size)), chance
        ) if case.config.stat().st_size else None
    if chance.random() < 0.05:
        os.truncate(case.config, chance.choice([1 << 24, 1 << 34]))  # sparse


# ---- the folder


def _which(case: Case, chance: random.Random) -> Path:
    return chance.choice([case.weights, case.config])


def missing_or_swapped(case: Case, chance: random.Random) -> None:
    one, other = chance.sample([case.weights, case.config], 2)
    kind = chance.randrange(4)
    if kind == 0:
        one.unlink()
    elif kind == 1:
        one.write_bytes(other.read_bytes())
    elif kind == 2:
        one.rename(case.folder / "x")
        other.rename(one)
        (case.folder / "x").rename(other)
    else:
        shutil.rmtree(case.folder)
        if chance.random() < 0.5:
            case.folder.write_text("a file")


def pickled(case: Case, chance: random.Random) -> None:
    case.weights.unlink()
    (case.folder / "adapter_model.bin").write_bytes(pickle.dumps(os.getcwd))


def symlinked(case: Case, chance: random.Random) -> None:
    path = _which(case, chance)
    away = case.folder.parent / f"away-{path.name}"
    path.rename(away)
    path.symlink_to(
        chance.choice(
            [away, path, "nowhere", "/dev/zero", "/dev/full", "/dev/null", "/proc/self/mem", case.folder, "/"]
        )
    )
    if chance.random() < 0.2:
        case.folder.rename(case.folder.parent / "moved")
        case.folder.symlink_to(chance.choice(["moved", case.folder.name]))


def folder_for_a_file(case: Case, chance: random.Random) -> None:
    path = _which(case, chance)
    path.unlink()
    path.mkdir()


def fifo_or_socket(case: Case, chance: random.Random) -> None:
    path = _which(case, chance)
    path.unlink()
    if chance.random() < 0.7:
        os.mkfifo(path)
    else:
        here = os.open(case.folder, os.O_RDONLY)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def unreadable(case: Case, chance: random.Random) -> None:
    chance.choice([case.weights, case.config, case.folder]).chmod(0)
    case.as_nobody = True


def folder_name(case: Case, chance: random.Random) -> None:
    name = chance.choice(
        [b"\xff\xfe", b"a\x1b[2Jb", b"[red]x", b"-o", b"a,b", "ä".encode(), b"x" * 255, b"x" * 256, b"a\nb"]
    )
    renamed = case.folder.parent / os.fsdecode(name)
    case.folder = case.folder.rename(renamed) if len(name) < 256 else renamed


def changed_after_the_plan(case: Case, chance: random.Random) -> None:
    def unlink() -> None:
        _which(case, chance).unlink()

    def flip() -> None:
        data_flipped(case, chance)

    def regrow() -> None:
        shutil.rmtree(case.folder)
        write_adapter_folder(case.folder, seed=5, dtype=torch.float16)

    def cut() -> None:
        os.truncate(case.weights, chance.randrange(case.weights.stat().st_size))

    def fifo() -> None:
        case.weights.unlink()
        os.mkfifo(case.weights)

    case.late = chance.choice([unlink, flip, regrow, cut, fifo])


def wild_weight(case: Case, chance: random.Random) -> None:
    case.weight = chance.choice(
        [float("nan"), float("inf"), 1e308, -1e308, 1e39, 1e-320, 1e-46, 0.0, -0.0, -1.0, 3.3e38]
    )


MUTATIONS: dict[str, Mutation] = {
    **WEIGHT_MUTATIONS,
    "config: a wrong type": _fields(_wrong_type),
    "config: r and alpha": _fields(_numbers),
    "config: patterns, regex bombs": _fields(_patterns),
    "config: target_modules": _fields(_targets),
    "config: features switched on": _fields(_switched_on),
    "config: base and revision": _fields(_base),
    "config: a field missing": _fields(lambda config, chance: config.pop(chance.choice(list(config)))),
    "config: an unknown field": _fields(
        lambda config, chance: config.update({chance.choice(NAMES): chance.choice(VALUES)})
    ),
    "config text": config_bytes,
    "a file missing or swapped": missing_or_swapped,
    "a pickle": pickled,
    "symlinks, devices": symlinked,
    "a folder for a file": folder_for_a_file,
    "a FIFO or socket for a file": fifo_or_socket,
    "unreadable": unreadable,
    "folder names": folder_name,
    "changed after the plan": changed_after_the_plan,
    "weight of the part": wild_weight,
}
KINDS = [*MUTATIONS, "two at once"]


def mutate(case: Case, kind: str, seed: int) -> None:
    """Break a sound case in one way."""
    chance = random.Random(f"{kind} {seed}")
    if kind in MUTATIONS:
        MUTATIONS[kind](case, chance)
        return
    inside = [name for name in MUTATIONS if name.startswith("config:")]
    MUTATIONS[chance.choice(inside)](case, chance)
    MUTATIONS[chance.choice([name for name in MUTATIONS if name not in inside])](case, chance)
