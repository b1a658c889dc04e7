"""A sound adapter's weights file, broken: its bytes, its header, its tensors."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from .mutation_values import HUGE, KEYS, NAMES, VALUES

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass
class Case:
    """One adapter to be merged with a sound one."""

    folder: Path
    weight: float = 1.0
    late: Callable[[], object] | None = None
    """Done after the plan was made, before the numbers are read."""
    as_nobody: bool = False
    """To be merged by a user who may not read everything."""

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def config(self) -> Path:
        return self.folder / CONFIG


Mutation = Callable[[Case, random.Random], object]


# ---- the weights file: its bytes


def _split(case: Case) -> tuple[dict[str, Any], bytes]:
    data = case.weights.read_bytes()
    stop = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:stop]), data[stop:]


def _join(case: Case, header: Any, data: bytes, *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    case.weights.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def flip_bits(path: Path, positions: range, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.choice(positions)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncated(case: Case, chance: random.Random) -> None:
    data = case.weights.read_bytes()
    case.weights.write_bytes(data[: chance.randrange(len(data))])


def extended(case: Case, chance: random.Random) -> None:
    with case.weights.open("ab") as file:
        if chance.random() < 0.3:
            file.truncate(chance.choice([1 << 20, 1 << 30, 1 << 36]))  # sparse
        else:
            file.write(chance.randbytes(chance.choice([1, 7, 8, 4096])))


def header_flipped(case: Case, chance: random.Random) -> None:
    _, data = _split(case)
    flip_bits(case.weights, range(case.weights.stat().st_size - len(data)), chance)


def data_flipped(case: Case, chance: random.Random) -> None:
    size, (_, data) = case.weights.stat().st_size, _split(case)
    flip_bits(case.weights, range(size - len(data), size), chance)


def header_length(case: Case, chance: random.Random) -> None:
    data = case.weights.read_bytes()
    true = struct.unpack("<Q", data[:8])[0]
    lengths = [*(value % (1 << 64) for value in HUGE), 1, 2, true - 1, true + 1, true + 8, 99_999_999, 100_000_001]
    case.weights.write_bytes(struct.pack("<Q", chance.choice([*lengths, chance.getrandbits(64)])) + data[8:])
    if chance.random() < 0.2:
        os.truncate(case.weights, chance.choice([60_000_000, 1 << 34]))


def header_bytes(case: Case, chance: random.Random) -> None:
    deep = chance.choice([100, 900, 980, 990, 1000, 5000, 200_000])
    text = chance.choice(
        [b"[" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep + b"]" * deep,
        b"[" + b"[]," * 300_000 + b"[]]",
         b"{" + b'"":{},' * 9 + b'"":{}}', b'{"a":' + b"9" * deep + b"}", b'{"a":1e999}', b"\xef\xbb\xbf{}",
         b"\xff\xfe{\0}\0",
         b"null", b"", b"{}", b"[]", b'"x"', b"NaN", b'{"__metadata__":' + b"[" * deep + b"]" * deep + b"}"]
    )  # fmt: skip
    _join(case, text, chance.choice([b"", _split(case)[1]]))


# ---- the weights file: its header


def _entries(change: Callable[[dict[str, Any], random.Random], object]) -> Mutation:
    def mutate(case: Case, chance: random.Random) -> None:
        header, data = _split(case)
        change(header, chance)
        _join(case, header, data)

    return mutate


def _some(header: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    entry: dict[str, Any] = header[chance.choice([name for name in header if name != "__metadata__"])]
    return entry


def _offsets(header: dict[str, Any], chance: random.Random) -> None:
    entry, other = _some(header, chance), _some(header, chance)
    start, stop = entry["data_offsets"]
    near = [start - 4, start + 4, stop - 4, stop + 4, stop, start, *other["data_offsets"], *HUGE]
    choices = [
        [chance.choice(near), chance.choice(near)],
        [stop, start],
        other["data_offsets"],
        [start],
        [start, stop, stop],
    ]
    entry["data_offsets"] = chance.choice([*choices, [str(start), stop], [float(start), stop], chance.choice(VALUES)])


def _dtype(header: dict[str, Any], chance: random.Random) -> None:
    known = ["F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "float32", "F32 ", *VALUES]
    _some(header, chance)["dtype"] = chance.choice(known)


def _shape(header: dict[str, Any], chance: random.Random) -> None:
    entry = _some(header, chance)
    a, b = entry["shape"]
    shapes = [
        [b, a],
        [a * b],
        [a, b, 1],
        [1, a, b],
        [a, b + 1],
        [-a, -b],
        [float(a), b],
        [True, a * b],
        [],
        [0, 0],
        [a, "b"],
    ]
    grown = [[a, chance.choice(HUGE)], [chance.choice(HUGE), chance.choice(HUGE)], [1 << 32, 1 << 32, 0], [[a, b]]]
    entry["shape"] = chance.choice([*shapes, *grown, [1] * 5000 + [a, b], chance.choice(VALUES)])


def _names(header: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice([name for name in header if name != "__metadata__"])
    module, half = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
    name = chance.choice(NAMES)
    foreign = chance.choice(KEYS).format(p="base_model.model.", m=module)
    if chance.random() < 0.3:  # A and B both, so that only the name is wrong
        for side in "AB":
            header[f"base_model.model.{name}.lora_{side}.weight"] = header.pop(
                f"base_model.model.{module}.lora_{side}.weight"
            )
        return
    header[chance.choice([f"base_model.model.{name}.lora_{half}", name, foreign])] = header.pop(key)


def _anything(header: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice(list(header))
    if chance.random() < 0.5 and isinstance(header[key], dict):
        header[key][chance.choice([*header[key], "more"])] = chance.choice([*VALUES, *HUGE])
    else:
        header[key] = chance.choice([*VALUES, *HUGE])


def _metadata(header: dict[str, Any], chance: random.Random) -> None:
    header["__metadata__"] = chance.choice(
        [*VALUES, {"format": 1}, {"format": None}, {"x" * 9999: "y"}, {"format": "np"}]
    )


def name_twice(case: Case, chance: random.Random) -> None:
    header, data = _split(case)
    key = chance.choice([name for name in header if name != "__metadata__"])
    text = json.dumps(header)
    other = chance.choice([key, "__metadata__", key.replace("model", "\\u006dodel")])
    _join(case, f'{text[:-1]}, "{other}": {json.dumps(chance.choice([header[key], {}, {"a": "b"}]))}}}'.encode(), data)


# ---- the weights file: its tensors


def _tensors(change: Callable[[dict[str, torch.Tensor], str, random.Random], object]) -> Mutation:
    def mutate(case: Case, chance: random.Random) -> None:
        tensors = load(case.weights.read_bytes())
        change(tensors, chance.choice(sorted(tensors)), chance)
        case.weights.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    return mutate


def _not_finite(tensors: dict[str, torch.Tensor], key: str, chance: random.Random) -> None:
    flat = tensors[key].view(-1)
    for _ in range(chance.choice([1, 1, 5])):
        flat[chance.randrange(len(flat))] = chance.choice([float("nan"), float("inf"), float("-inf")])


def _extreme(tensors: dict[str, torch.Tensor], key: str, chance: random.Random) -> None:
    dtype = chance.choice([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    limits = torch.finfo(dtype)
    sizes = [limits.max, -limits.max, limits.max**0.5, limits.tiny, limits.smallest_normal / 4, 0.0, -0.0, 70_000.0]
    changed = tensors[key].to(dtype)
    rows = slice(None) if chance.random() < 0.3 else slice(0, 1)
    changed[rows] = min(chance.choice(sizes), limits.max)
    tensors[key] = changed


def _rebuilt(tensors: dict[str, torch.Tensor], key: str, chance: random.Random) -> None:
    tensor = tensors[key]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.T, lambda: tensor[:1], lambda: tensor[:, :1], lambda: tensor[:0], lambda: tensor[:, :0],
        lambda: tensor[0],
        lambda: tensor[None], lambda: torch.cat([tensor, tensor]), lambda: torch.cat([tensor, tensor], 1),
        lambda: tensor.sum(),
        lambda: tensor.double(), lambda: tensor.half(), lambda: tensor.bfloat16(),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.int(), lambda: tensor.bool(), lambda: tensor.to(torch.complex64), lambda: tensor * 0,
        lambda: -tensor,
    ]  # fmt: skip
    if chance.random() < 0.15:
        del tensors[key]
    else:
        tensors[key] = chance.choice(changes)()


WEIGHT_MUTATIONS: dict[str, Mutation] = {
    "weights truncated": truncated,
    "weights extended": extended,
    "header bits flipped": header_flipped,
    "data bits flipped": data_flipped,
    "header length": header_length,
    "header text: nesting, numbers, encodings": header_bytes,
    "offsets: overlaps, holes, huge": _entries(_offsets),
    "dtype": _entries(_dtype),
    "shape in the header": _entries(_shape),
    "tensor names: paths, control characters": _entries(_names),
    "any header value": _entries(_anything),
    "metadata": _entries(_metadata),
    "a name twice": name_twice,
    "NaN and infinity": _tensors(_not_finite),
    "extreme finite numbers": _tensors(_extreme),
    "tensors of other shapes and dtypes": _tensors(_rebuilt),
}
