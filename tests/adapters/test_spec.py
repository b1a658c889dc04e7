"""Adapter folders, sound and unsound, read from config and header alone."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.spec import WEIGHTS_NAME, read_spec, suffix_targets
from plyfold.adapters.targets import Targets
from plyfold.adapters.tensors import check_targets
from plyfold.core.errors import IntegrityError, NotFoundError, UnsupportedAdapterError

ONE = {"model.layers.0.self_attn.q_proj": (8, 6)}
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def _write(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A weights file with the header as given, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(text) if length is None else length)
    (folder / WEIGHTS_NAME).write_bytes(prefix + text + data)
    return folder


def _entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.fixture
def folder(tmp_path: Path, make_adapter: Any) -> Path:
    return make_adapter(tmp_path / "adapter", modules=ONE, r=2, alpha=3)


def test_a_plain_adapter_is_read_whole(folder: Path) -> None:
    spec = read_spec(folder)
    module = spec.modules["model.layers.0.self_attn.q_proj"]
    assert (module.r, module.scale, module.in_features, module.out_features) == (2, 1.5, 6, 8)
    assert (spec.base_repo, spec.base_revision, spec.dtype) == (
        "acme/tiny-qwen2",
        "0123456789abcdef0123456789abcdef01234567",
        "float32",
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["experts.down_proj"]),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "LOHA"),
        ("a_field_of_the_future", 7),
    ],
)
def test_features_without_an_additive_meaning_are_refused_by_name(
    tmp_path: Path, make_adapter: Any, field: str, value: Any
) -> None:
    make_adapter(tmp_path, modules=ONE, **{field: value})
    with pytest.raises(UnsupportedAdapterError) as caught:
        read_spec(tmp_path)
    assert (field if field != "peft_type" else "LOHA") in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("init_lora_weights", "gaussian"), ("init_lora_weights", False), ("lora_dropout", 0.1), ("peft_version", "9.9")],
)
def test_fields_that_bear_only_on_training_are_accepted(
    tmp_path: Path, make_adapter: Any, field: str, value: Any
) -> None:
    assert read_spec(make_adapter(tmp_path, modules=ONE, **{field: value})).modules


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        (KEY.format("B").replace("weight", "bias"), "bias"),
    ],
)
def test_foreign_tensors_are_refused_by_name(folder: Path, key: str, named: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=named):
        read_spec(_write(folder, {key: _entry(0, 4, [1])}, bytes(4)))


def test_missing_parts_are_not_found(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="folder"):
        read_spec(tmp_path / "nowhere")
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(NotFoundError, match=WEIGHTS_NAME):
        read_spec(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(NotFoundError, match="adapter_config"):
        read_spec(folder)


def test_a_pickle_is_refused_unopened(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(IntegrityError, match="pickle"):
        read_spec(folder)
    assert not (tmp_path / "exploded").exists()


A, B = _entry(0, 48, [2, 6]), _entry(48, 112, [8, 2])
B3 = _entry(72, 168, [8, 3])


@pytest.mark.parametrize(
    ("what", "header", "data_bytes", "length"),
    [
        ("length beyond 16 MB", {}, 0, 1 << 62),
        ("length of all ones", {}, 0, (1 << 64) - 1),
        ("length beyond the file", {}, 0, 50_000),
        ("not JSON", b"{]", 0, None),
        ("not UTF-8", b'{"\xff": 1}', 0, None),
        ("a list", b"[]", 0, None),
        ("nested beyond measure", b"[" * 200_000, 0, None),
        ("an integer beyond measure", b'{"a": ' + b"9" * 5000 + b"}", 0, None),
        ("no tensor", {}, 0, None),
        ("a name twice", b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), 48, None),
        ("an entry that is text", {KEY.format("A"): "x"}, 0, None),
        ("an entry with another key", {KEY.format("A"): {**A, "more": 1}, KEY.format("B"): B}, 112, None),
        ("overlapping ranges", {KEY.format("A"): A, KEY.format("B"): _entry(40, 104, [8, 2])}, 104, None),
        ("a hole", {KEY.format("A"): A, KEY.format("B"): _entry(56, 120, [8, 2])}, 120, None),
        ("trailing bytes", {KEY.format("A"): A, KEY.format("B"): B}, 113, None),
        ("too few bytes", {KEY.format("A"): A, KEY.format("B"): B}, 111, None),
        ("a range before the data", {KEY.format("A"): _entry(-48, 0, [2, 6]), KEY.format("B"): B}, 112, None),
        ("a reversed range", {KEY.format("A"): _entry(48, 0, [2, 6]), KEY.format("B"): B}, 112, None),
        ("a range for another shape", {KEY.format("A"): _entry(0, 48, [2, 7]), KEY.format("B"): B}, 112, None),
        ("a shape that overflows", {KEY.format("A"): _entry(0, 48, [1 << 62, 1 << 62, 6])}, 48, None),
        ("a shape of floats", {KEY.format("A"): {**A, "shape": [2.0, 6.0]}, KEY.format("B"): B}, 112, None),
        ("a shape of booleans", {KEY.format("A"): {**A, "shape": [True, 12]}, KEY.format("B"): B}, 112, None),
        ("an unknown dtype", {KEY.format("A"): {**A, "dtype": "F31"}, KEY.format("B"): B}, 112, None),
        ("whole numbers", {KEY.format("A"): {**A, "dtype": "I32"}, KEY.format("B"): B}, 112, None),
        ("A without B", {KEY.format("A"): A}, 48, None),
        ("a rank of its own", {KEY.format("A"): _entry(0, 72, [3, 6]), KEY.format("B"): B3}, 168, None),
        ("A and B of two ranks", {KEY.format("A"): A, KEY.format("B"): _entry(48, 144, [8, 3])}, 144, None),
        ("no columns", {KEY.format("A"): _entry(0, 0, [2, 0]), KEY.format("B"): _entry(0, 64, [8, 2])}, 64, None),
        ("no module name", {f"a/b.{KEY.format(h)}": e for h, e in (("A", A), ("B", B))}, 112, None),
    ],
)  # fmt: skip
def test_unsound_weights_end_in_an_integrity_error(
    folder: Path, what: str, header: Any, data_bytes: int, length: int | None
) -> None:
    with pytest.raises(IntegrityError):
        read_spec(_write(folder, header, bytes(data_bytes), length=length))


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/passwd", "a/../b", "a\x00b", "a b", "", ".", "a..b", "a.b" * 400, "ä"]
)
def test_module_names_cannot_be_paths(folder: Path, name: str) -> None:
    header = {f"base_model.model.{name}.lora_A.weight": A, f"base_model.model.{name}.lora_B.weight": B}
    with pytest.raises(IntegrityError):
        read_spec(_write(folder, header, bytes(112)))


@pytest.mark.slow
def test_truncation_anywhere_and_every_flipped_header_byte_is_contained(folder: Path) -> None:
    weights = folder / WEIGHTS_NAME
    whole = weights.read_bytes()
    data_start = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in range(0, len(whole), 3):
        weights.write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            read_spec(folder)
    accepted = 0
    for position in range(data_start):
        for mask in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            weights.write_bytes(damaged)
            with contextlib.suppress(IntegrityError, UnsupportedAdapterError):
                read_spec(folder)
                accepted += 1  # the flip spells another sound header, as in a module's name or the metadata
    assert accepted < data_start


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", True), ("r", "4"), ("r", 10**30), ("lora_alpha", "8"), ("lora_alpha", None),
        ("lora_alpha", float("nan")), ("lora_alpha", 10**400), ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": -1}), ("alpha_pattern", {"q_proj": "x"}), ("alpha_pattern", {"(": 1}),
        ("init_lora_weights", ["pissa"]), ("init_lora_weights", 1),
    ],
)  # fmt: skip
def test_malformed_numbers_in_the_config_are_integrity_errors(
    tmp_path: Path, make_adapter: Any, field: str, value: Any
) -> None:
    make_adapter(tmp_path, modules=ONE)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {field: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=field):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 200_000, b'"x"'])
def test_a_config_that_is_not_an_object_is_an_integrity_error(folder: Path, text: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(IntegrityError):
        read_spec(folder)


def test_a_pattern_that_could_match_for_ever_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    make_adapter(tmp_path, modules=ONE, alpha_pattern={"(a+)+b": 3})
    with pytest.raises(UnsupportedAdapterError, match="pattern"):
        read_spec(tmp_path)


def test_a_tensor_that_peft_would_drop_and_vllm_apply_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    make_adapter(tmp_path, modules=ONE, target_modules=["k_proj"])
    with pytest.raises(IntegrityError, match="target"):
        read_spec(tmp_path)


def test_suffix_targets_speak_only_for_adapters_made_by_suffix(tmp_path: Path, make_adapter: Any) -> None:
    plain = read_spec(make_adapter(tmp_path / "plain"))
    one = read_spec(make_adapter(tmp_path / "one", modules=ONE))
    chosen = read_spec(make_adapter(tmp_path / "chosen", modules=ONE, layers_to_transform=[0]))
    named = read_spec(make_adapter(tmp_path / "named", modules=ONE, target_modules=list(ONE)))
    assert suffix_targets([plain, one]) == sorted(plain.config["target_modules"])
    assert suffix_targets([one]) == ["q_proj"]
    assert suffix_targets([plain, chosen]) is None
    assert suffix_targets([plain, named]) is None


NAMES = [
    f"{front}layers.{layer}.{leaf}"
    for front in ("model.", "", "model.language_model.", "model.vision_tower.encoder.")
    for layer in (0, 1, 11)
    for leaf in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.1.up_proj")
]
TARGETS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.mlp.up_proj", "self_attn.q_proj"]},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*vision_tower.*"},
    {"target_modules": ["up_proj"], "layers_to_transform": [1]},
    {"target_modules": ["up_proj", "q_proj"], "layers_to_transform": 0},
    {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "experts"]},
    {"target_modules": ["model.layers.0.mlp.up_proj"]},
    {"target_modules": r".*language_model.*\.(q_proj|up_proj)"},
    {"target_modules": r"model\.layers\.\d+\.self_attn\.q_proj"},
    {"target_modules": r"(?i)MODEL\.LAYERS\.\d+\.SELF_ATTN\.Q_PROJ"},
    {"target_modules": r"(\w+\.)*q_proj"},
    {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r"(\w+\.)+up_proj"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": r"lay(er)+s"},
    {  # what Unsloth writes for a vision-language model
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))"
    },
]


@pytest.mark.parametrize("fields", TARGETS)
def test_what_a_config_leaves_out_is_what_peft_leaves_out(fields: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    targeted = pytest.importorskip("peft.tuners.tuners_utils").check_target_module_exists
    config = peft.LoraConfig(**fields)
    targets = Targets(fields, Path(), NAMES)
    ours = {name for name in NAMES if not targets.leave_out(name)}
    assert ours == {name for name in NAMES if targeted(config, name)}
    assert 0 < len(ours) < len(NAMES)


def test_a_tensor_that_peft_would_drop_is_refused(tmp_path: Path, make_adapter: Any) -> None:
    make_adapter(tmp_path, modules=ONE, layers_to_transform=[1])
    with pytest.raises(IntegrityError, match="does not target"):
        read_spec(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("pattern", [r"(.|\w)*!", ".*" * 12 + "!", "x" * 20_000])
def test_a_pattern_that_takes_for_ever_is_refused(tmp_path: Path, make_adapter: Any, field: str, pattern: str) -> None:
    make_adapter(tmp_path, modules=ONE, **{field: pattern})
    with pytest.raises(UnsupportedAdapterError, match=f"the pattern of {field} takes too long"):
        read_spec(tmp_path)


def test_tens_of_thousands_of_names_in_full_take_no_time() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(60) for expert in range(500)]
    start = time.process_time()
    targets = Targets({"target_modules": names[1:], "layers_to_transform": [0]}, Path(), names)
    assert [name for name in names if targets.leave_out(name)] == names[:1]
    assert check_targets(names, None) == sorted(names)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, make_adapter: Any, field: str) -> None:
    make_adapter(tmp_path, modules=ONE, **{"layers_to_transform": [0], field: "(q_proj"})
    with pytest.raises(IntegrityError, match=f"{field} is malformed"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("adapters.safetensors", "MLX"),
        ("pytorch_lora_weights.safetensors", "diffusers"),
        ("model.safetensors", "whole"),
    ],
)
def test_a_folder_of_another_tool_is_named(folder: Path, file: str, named: str) -> None:
    (folder / WEIGHTS_NAME).rename(folder / file)
    with pytest.raises(NotFoundError, match=named):
        read_spec(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter_is_answered_with_its_folder(folder: Path, file: str) -> None:
    with pytest.raises(NotFoundError, match="not a file of it") as caught:
        read_spec(folder / file)
    assert str(folder) in caught.value.next_step


def test_shards_of_an_adapter_are_named(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model-00001-of-00001.safetensors")
    with pytest.raises(NotFoundError) as caught:
        read_spec(folder)
    assert "adapter_model-00001-of-00001.safetensors" in caught.value.found
    assert "into one adapter_model.safetensors" in caught.value.next_step


def test_mlx_config_is_named(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}))
    with pytest.raises(UnsupportedAdapterError, match="MLX"):
        read_spec(folder)
