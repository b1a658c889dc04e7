"""Variants: names, look-up, composition in the cache, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plyfold.adapters.base.resolve import config_digest, tokenizer_digest
from plyfold.adapters.tensors import read_adapter
from plyfold.cli.main import run
from plyfold.core.errors import (
    BaseMismatchError,
    ConfigError,
    IncompatibleError,
    NotFoundError,
    ShapeMismatchError,
    UnsupportedAdapterError,
)
from plyfold.variants import (
    Variant,
    base_of,
    check_fits,
    find_variant,
    materialise,
    parse_variant,
    plan_variant,
)


@pytest.mark.parametrize(
    ("text", "curriculum", "stages"),
    [
        ("base", "gsm8k", ()),
        ("1", "gsm8k", (1,)),
        ("1+2+3", "gsm8k", (1, 2, 3)),
        ("3+1", "gsm8k", (1, 3)),
        ("other:1+2", "other", (1, 2)),
        ("other:base", "other", ()),
        ("other-s1.s12", "other", (1, 12)),
        ("a-s1-s2", "a-s1", (2,)),
        ("other-base", "other", ()),
    ],
)
def test_names_are_read(text: str, curriculum: str, stages: tuple[int, ...]) -> None:
    variant = parse_variant(text, "gsm8k")
    assert variant == Variant(curriculum=curriculum, stages=stages)
    assert parse_variant(variant.name, curriculum) == variant
    assert parse_variant(variant.slug, "elsewhere") == variant
    assert parse_variant(variant.alias, "elsewhere") == variant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1+",
        "+1",
        "1++2",
        "1,2",
        "base+1",
        "1+1",
        "0",
        "1*",
        "1*x",
        "*2",
        "1*nan",
        "1*2*3",
        "x:",
        "1 +2",
        "-1",
        "A:1",
        "1\n",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_variant(text, "gsm8k")


def test_weights_are_part_of_the_name() -> None:
    variant = Variant(curriculum="gsm8k", stages=(1, 2), weights=(1.0, 0.5))
    assert (variant.name, variant.slug) == ("1+2*0.5", "gsm8k-s1.s2*0.5")
    assert parse_variant("2*0.5+1*1", "gsm8k") == variant
    assert parse_variant("gsm8k-s1.s2x0.5", "elsewhere") == variant


@given(
    st.dictionaries(
        st.integers(1, 999), st.floats(-1e300, 1e300, allow_nan=False).filter(lambda value: value), min_size=1
    ).filter(lambda terms: len(terms) <= 16)
)
def test_every_slug_is_read_back(terms: dict[int, float]) -> None:
    stages = tuple(sorted(terms))
    weights = tuple(terms[stage] for stage in stages)
    plain = all(weight == 1 for weight in weights)
    variant = Variant(curriculum="gsm8k", stages=stages, weights=None if plain else weights)
    for text in (variant.slug, variant.slug.replace("*", "x")):
        assert parse_variant(text, "gsm8k") == variant


class TestInAStore:
    @pytest.fixture(scope="class")
    def store(self, make_store: Any, tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return make_store(tmp_path_factory.mktemp("store") / ".plyfold", tiny_base(dtype="float32"))

    def test_a_composed_variant_is_the_sum_and_is_made_once(self, store: Any) -> None:
        from plyfold.adapters.tensors import read_adapter, tensor_digest

        variant = parse_variant("1+3", "tiny")
        made = materialise(store, variant)
        assert made.path is not None
        assert (made.r, made.digest) == (8, tensor_digest(made.path))
        composed = read_adapter(made.path)
        parts = [read_adapter(store.stage("tiny", number).path) for number in (1, 3)]
        for name, factors in composed.factors.items():
            expected = sum(f.scale * f.B_OR.double() @ f.A_RI.double() for f in (p.factors[name] for p in parts))
            # The scales are powers of two and both products are float64 of the same numbers.
            assert (factors.B_OR.double() @ factors.A_RI.double() - expected).abs().max() < 1e-12
        before = {file: file.stat().st_mtime_ns for file in made.path.iterdir()}
        assert materialise(store, variant) == made
        assert {file: file.stat().st_mtime_ns for file in made.path.iterdir()} == before

    def test_a_damaged_cache_entry_is_made_again_and_said(self, store: Any, capsys: pytest.CaptureFixture[str]) -> None:
        made = materialise(store, parse_variant("1", "tiny"))
        assert made.path is not None
        weights = made.path / "adapter_model.safetensors"
        good = weights.read_bytes()
        weights.write_bytes(good[:-4] + b"\x00\x00\x80\x7f")
        assert materialise(store, parse_variant("1", "tiny")) == made
        assert weights.read_bytes() == good
        assert "damaged" in capsys.readouterr().err

    def test_an_entry_left_without_its_note_is_made_again(self, store: Any) -> None:
        made = materialise(store, parse_variant("2", "tiny"))
        assert made.path is not None
        (made.path.parent / f"{made.path.name}.json").unlink()
        (made.path / "adapter_model.safetensors").write_bytes(b"torn")
        assert materialise(store, parse_variant("2", "tiny")) == made

    def test_a_lossy_merge_is_found_by_its_name(self, store: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["merge", "--stages", "1,2", "--rank", "3", "--registry", str(store.root), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        slug = "tiny-s1.s2-svd3"
        where = f" --registry {store.root}"
        assert told["next"] == f"plyfold eval base {slug}{where}   or   plyfold serve base {slug}{where}"
        for text in (slug, f"tiny:{slug}"):
            variant = find_variant(store, text, "elsewhere")
            assert (variant.name, variant.merge, variant.stages) == (slug, slug, ())
        made = materialise(store, variant)
        assert made.path is not None
        assert [entry.digest for entry in made.entries] == [told["written"]["record"]]
        ours, merged = (read_adapter(path) for path in (made.path, Path(told["written"]["path"])))
        for name, factors in merged.factors.items():
            assert torch.equal(ours.factors[name].B_OR, factors.B_OR)
            assert torch.equal(ours.factors[name].A_RI, factors.A_RI)
        ref, _ = base_of(store, [variant])
        assert ref == base_of(store, [parse_variant("1", "tiny")])[0]
        with pytest.raises(ConfigError) as caught:
            find_variant(store, "nobody", "tiny")
        assert slug in caught.value.expected

    def test_the_base_has_no_adapter(self, store: Any) -> None:
        made = materialise(store, parse_variant("base", "tiny"))
        assert (made.path, made.r, made.digest) == (None, 0, None)

    def test_planning_writes_nothing(self, store: Any) -> None:
        plan = plan_variant(store, parse_variant("2+3", "tiny"))
        assert plan.path is not None
        assert not plan.path.exists()
        assert plan.r == 8

    def test_other_stages_or_weights_lie_elsewhere(self, store: Any) -> None:
        variants = [parse_variant(name, "tiny") for name in ("1", "1+2", "2")]
        variants.append(Variant(curriculum="tiny", stages=(1, 2), weights=(1.0, 0.5)))
        assert len({plan_variant(store, variant).path for variant in variants}) == 4

    @pytest.mark.parametrize("name", ["4", "1+4", "elsewhere:1", "elsewhere:base"])
    def test_an_unknown_stage_or_curriculum_is_named(self, store: Any, name: str) -> None:
        with pytest.raises(NotFoundError) as caught:
            plan_variant(store, parse_variant(name, "tiny"))
        assert "tiny" in str(caught.value)

    def test_the_base_is_where_it_was_remembered(self, store: Any, tiny_base: Any) -> None:
        ref, quantisation = base_of(store, [parse_variant("base", "tiny"), parse_variant("1+2", "tiny")])
        assert ref.path == tiny_base(dtype="float32")
        assert quantisation.compute_dtype == "float32"


def test_variants_of_two_bases_are_refused(make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base(dtype="float32")
    make_store(tmp_path / "s", base, curriculum="one", stages=1)
    store = make_store(tmp_path / "s", base, curriculum="two", stages=1, revision="f" * 40)
    with pytest.raises(BaseMismatchError):
        base_of(store, [parse_variant("one:1", "one"), parse_variant("two:1", "one")])


def test_variants_of_two_quantisations_are_refused(make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base(dtype="float32")
    make_store(tmp_path / "s", base, curriculum="one", stages=1)
    store = make_store(tmp_path / "s", base, curriculum="two", stages=1, compute_dtype="bfloat16")
    with pytest.raises(BaseMismatchError, match="different bases"):
        base_of(store, [parse_variant("one:1", "one"), parse_variant("two:1", "one")])


def _say_which_files(store: Any, base: Path, curriculum: str = "tiny", **digests: str) -> None:
    """Publish stage 1 again with the digests of its base's config and tokenizer on record."""
    entry = store.stage(curriculum, 1)
    files = {"config_digest": config_digest(base), "tokenizer_digest": tokenizer_digest(base), **digests}
    record = entry.record.model_copy(update={"base": entry.record.base.model_copy(update=files)})
    store.set_ref(curriculum, 1, store.publish(entry.path, record))


def test_a_base_whose_files_are_not_those_on_record_is_refused(make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base(dtype="float32"), base)
    store = make_store(tmp_path / "s", base, stages=2)
    variants = [parse_variant("1+2", "tiny")]
    _say_which_files(store, base)
    assert base_of(store, variants)[0].path == base  # stage 2 does not say, which is not another base
    text = (base / "tokenizer_config.json").read_text()
    (base / "tokenizer_config.json").write_text(text.replace("{", '{"chat_template": "x", ', 1))
    with pytest.raises(BaseMismatchError, match="another tokenizer"):
        base_of(store, variants)
    (base / "tokenizer_config.json").write_text(text)
    (base / "config.json").write_text((base / "config.json").read_text().replace("rope", "r0pe"))
    with pytest.raises(BaseMismatchError, match="another config"):
        base_of(store, variants)


@pytest.mark.parametrize("field", ["config_digest", "tokenizer_digest"])
def test_variants_of_two_tokenizers_are_refused(make_store: Any, tiny_base: Any, tmp_path: Path, field: str) -> None:
    base = tiny_base(dtype="float32")
    make_store(tmp_path / "s", base, curriculum="one", stages=1)
    store = make_store(tmp_path / "s", base, curriculum="two", stages=1)
    _say_which_files(store, base, "one")
    _say_which_files(store, base, "two", **{field: "sha256:" + "a" * 64})
    with pytest.raises(BaseMismatchError, match="different bases"):
        base_of(store, [parse_variant("one:1", "one"), parse_variant("two:1", "one")])


def test_an_adapter_that_does_not_fit_the_base_is_refused(make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base(dtype="float32")
    small = make_store(tmp_path / "a", base, stages=1, modules={"model.layers.0.self_attn.q_proj": (32, 64)})
    with pytest.raises(ShapeMismatchError, match="another size"):
        check_fits(base_of(small, [parse_variant("1", "tiny")])[0], [plan_variant(small, parse_variant("1", "tiny"))])
    other = make_store(tmp_path / "b", base, stages=1, modules={"model.layers.9.self_attn.q_proj": (64, 64)})
    with pytest.raises(IncompatibleError, match="does not have"):
        check_fits(base_of(other, [parse_variant("1", "tiny")])[0], [plan_variant(other, parse_variant("1", "tiny"))])
    foreign = make_store(tmp_path / "c", base, stages=1, repo="acme/another")
    with pytest.raises(BaseMismatchError, match="another base"):
        check_fits(
            base_of(foreign, [parse_variant("1", "tiny")])[0], [plan_variant(foreign, parse_variant("1", "tiny"))]
        )


def test_features_vllm_cannot_serve_are_refused_by_name(make_store: Any, tiny_base: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", tiny_base(dtype="float32"), stages=1, use_dora=True)
    with pytest.raises(UnsupportedAdapterError, match=r"(?i)dora"):
        plan_variant(store, parse_variant("1", "tiny"))
