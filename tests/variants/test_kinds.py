"""Every kind of variant: names that read back, what a registry finds by them, folders and checkpoints beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.adapters.base.resolve import BaseRef
from plyfold.adapters.tensors import read_adapter
from plyfold.core.errors import (
    BaseMismatchError,
    ConfigError,
    IntegrityError,
    NotFoundError,
    UnsupportedAdapterError,
)
from plyfold.merge.inputs import parse_base
from plyfold.registry.store.store import MERGES, Store, find_store
from plyfold.variants import (
    MergeOptions,
    Variant,
    check_fits,
    find_variant,
    ground_of,
    materialise,
    parse_variant,
    plan_merge,
    plan_variant,
    prepare_merge,
    publish_merge,
    stage_inputs,
)

CURRICULA = st.from_regex(r"[a-z0-9][a-z0-9-]{0,12}", fullmatch=True)
WEIGHTS = st.one_of(st.just(1.0), st.floats(-1e300, 1e300, allow_nan=False).filter(bool))
TERMS = st.dictionaries(st.integers(1, 999), WEIGHTS, max_size=16)
NAMES = st.one_of(
    st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True).filter(lambda name: name != "base"),
    st.builds(
        lambda curriculum, terms, end: (
            Variant(
                curriculum=curriculum, stages=tuple(sorted(terms)), weights=tuple(terms[each] for each in sorted(terms))
            ).slug.replace("*", "x")[: 120 - len(end)]
            + end
        ),
        CURRICULA,
        st.dictionaries(st.integers(1, 99), WEIGHTS, min_size=1, max_size=3),
        st.sampled_from(["-svd16", "-dare.ties12-d0.5-s7", "-peft", "-bf16", ""]),
    ),
)
FOLDERS = st.lists(st.text(st.characters(exclude_characters="/\0~"), min_size=1, max_size=8), min_size=1, max_size=4)


def _stages(curriculum: str, terms: dict[int, float]) -> Variant:
    numbers = tuple(sorted(terms))
    weights = tuple(terms[number] for number in numbers)
    return Variant(curriculum=curriculum, stages=numbers, weights=None if set(weights) <= {1.0} else weights)


VARIANTS = st.one_of(
    st.builds(_stages, CURRICULA, TERMS),
    st.builds(lambda curriculum, name: Variant(curriculum=curriculum, merge=name), CURRICULA, NAMES),
    st.builds(
        lambda curriculum, digits: Variant(curriculum=curriculum, digest=f"sha256:{digits}"),
        CURRICULA,
        st.from_regex(r"[0-9a-f]{4,64}", fullmatch=True),
    ),
    st.builds(
        lambda curriculum, start, names: parse_variant(start + "/".join(names), curriculum),
        CURRICULA,
        st.sampled_from(["./", "/", "../", "./../"]),
        FOLDERS,
    ),
)


@given(VARIANTS)
def test_every_name_is_read_back(variant: Variant) -> None:
    assert parse_variant(variant.name, variant.curriculum) == variant
    if variant.digest is None and variant.path is None:
        assert parse_variant(variant.alias, "elsewhere") == variant


@pytest.fixture
def store(make_store: Any, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    made: Store = make_store(tmp_path / ".plyfold", tiny_base(dtype="float32"))
    return made


def _merged(store: Store, *stages: int, **options: Any) -> str:
    plan = plan_merge(stage_inputs(store, stages), MergeOptions(**options))
    done = publish_merge(plan, prepare_merge(plan))
    assert done.slug is not None
    return done.slug


def _retrained(store: Store, make_adapter: Any, folder: Path, number: int) -> str:
    """Another adapter in a stage's place; the digest of the one before."""
    entry = store.stage("tiny", number)
    from plyfold.adapters.tensors import tensor_digest

    make_adapter(folder, seed=99)
    weights = entry.record.weights.model_copy(update={"digest": tensor_digest(folder)})
    store.set_ref("tiny", number, store.publish(folder, entry.record.model_copy(update={"weights": weights})))
    return entry.digest


class TestNamesInARegistry:
    def test_a_stage_is_found_by_its_name_and_by_its_digest(self, store: Store) -> None:
        for text in ("tiny-2", "tiny:tiny-2", store.ref("tiny", 2), store.ref("tiny", 2)[7:17]):
            assert find_variant(store, text, "tiny") == Variant(curriculum="tiny", stages=(2,)), text

    def test_a_merge_is_found_by_its_digest_under_its_name(self, store: Store) -> None:
        slug = _merged(store, 1, 2, rank=3)
        digest = store.merges("tiny")[slug]
        for text in (slug, digest, digest[:15], digest[7:19]):
            assert find_variant(store, text, "tiny").name == slug

    def test_what_no_name_has_any_more_is_found_by_its_digest(
        self, store: Store, make_adapter: Any, tmp_path: Path
    ) -> None:
        before = _retrained(store, make_adapter, tmp_path / "again", 2)
        variant = find_variant(store, before[7:19], "tiny")
        assert variant.name == before[:19]
        assert find_variant(store, variant.name, "tiny") == variant
        made, now = materialise(store, variant), materialise(store, parse_variant("2", "tiny"))
        assert [entry.digest for entry in made.entries] == [before]
        assert made.digest != now.digest
        with pytest.raises(NotFoundError, match="no such object"):
            find_variant(store, "sha256:" + "0" * 12, "tiny")

    def test_a_slug_that_has_come_to_mean_two_things_is_refused(
        self, store: Store, make_adapter: Any, tmp_path: Path
    ) -> None:
        slug = _merged(store, 1, 2)
        assert find_variant(store, slug, "tiny") == Variant(curriculum="tiny", stages=(1, 2))
        _retrained(store, make_adapter, tmp_path / "again", 2)
        with pytest.raises(ConfigError, match="several things") as caught:
            find_variant(store, slug, "tiny")
        digest = store.merges("tiny")[slug]
        assert caught.value.next_step == f"say which: tiny:1+2 or {digest[:19]}"
        assert find_variant(store, "tiny:1+2", "x").is_stages
        merge = find_variant(store, digest[:19], "x")
        assert (merge.merge, merge.name) == (slug, f"tiny:{slug}")
        assert find_variant(store, merge.name, "x") == merge
        assert materialise(store, merge).digest != materialise(store, parse_variant("1+2", "tiny")).digest

    def test_a_slug_whose_stages_are_not_here_is_the_merge(self, store: Store, tmp_path: Path) -> None:
        slug = _merged(store, 1, 2)
        entry = store.load(store.merges("tiny")[slug])
        alone = find_store(tmp_path / "alone", create=True)
        alone.set_ref("tiny", MERGES, alone.publish(entry.path, entry.record), slug)
        variant = find_variant(alone, slug, "tiny")
        assert variant.merge == slug
        assert plan_variant(alone, variant).entries[0].digest == entry.digest

    def test_names_that_two_things_share_are_refused(self, store: Store, make_adapter: Any, tmp_path: Path) -> None:
        from plyfold.registry.import_peft import import_adapter

        options: dict[str, Any] = {"curriculum": "tiny", "quantisation": "nf4"}
        imported = import_adapter(store, make_adapter(tmp_path / "one", seed=7), name="tiny-1", **options)
        with pytest.raises(ConfigError, match="several things") as caught:
            find_variant(store, "tiny-1", "tiny")
        assert caught.value.next_step == f"say which: tiny:1 or {imported.digest[:19]}"
        assert find_variant(store, imported.digest[:19], "tiny") == find_variant(store, imported.digest, "tiny")
        start = store.ref("tiny", 3)[7:13]
        if start[0].isalpha():  # a name begins with a letter
            import_adapter(store, make_adapter(tmp_path / "two", seed=8), name=start, **options)
            with pytest.raises(ConfigError, match="several things"):
                find_variant(store, start, "tiny")
        import_adapter(store, make_adapter(tmp_path / "three", seed=9), name="alice", curriculum="one")
        import_adapter(store, make_adapter(tmp_path / "four", seed=10), name="alice", curriculum="two")
        with pytest.raises(ConfigError) as caught:
            find_variant(store, "alice", "tiny")
        assert caught.value.next_step == "say which: one:alice or two:alice"
        assert find_variant(store, "alice", "two").curriculum == "two"

    def test_a_folder_named_without_its_slash_is_pointed_at(self, store: Store, make_adapter: Any) -> None:
        make_adapter(Path("my-lora"))
        with pytest.raises(ConfigError) as caught:
            find_variant(store, "my-lora", "tiny")
        assert "./my-lora" in caught.value.next_step


class TestFolders:
    def test_a_plain_folder_goes_beside_the_stages_and_what_is_assumed_is_told(
        self, store: Store, make_adapter: Any
    ) -> None:
        make_adapter(Path("my-lora"), seed=7, alpha=4)
        plans = [plan_variant(store, find_variant(store, text, "tiny")) for text in ("1", "./my-lora")]
        told: list[str] = []
        ground = ground_of(store, plans, told=told.append)
        assert ground is not None
        assert ground.quantisation is not None
        check_fits(ground.base, plans)
        assert "./my-lora does not say how its base was quantised" in told[0]
        made = materialise(store, plans[1])
        assert made.path is not None
        assert made.path.is_relative_to(store.cache)
        ours, theirs = (read_adapter(path) for path in (made.path, Path("my-lora")))
        for name, factors in theirs.factors.items():
            other = ours.factors[name]
            dW_OI = factors.scale * factors.B_OR.double() @ factors.A_RI.double()
            assert (other.scale * other.B_OR.double() @ other.A_RI.double()).equal(dW_OI)

    def test_alone_it_is_put_on_its_base_as_it_is(self, store: Store, make_adapter: Any, tiny_base: Any) -> None:
        make_adapter(Path("my-lora"))
        ground = ground_of(store, [plan_variant(store, parse_variant("./my-lora", ""))], told=lambda text: None)
        assert ground is not None
        assert (ground.quantisation, ground.path(store.cache)) == (None, tiny_base(dtype="float32"))

    def test_changed_files_are_another_adapter(self, store: Store, make_adapter: Any) -> None:
        make_adapter(Path("my-lora"))
        variant = parse_variant("./my-lora", "tiny")
        first = plan_variant(store, variant)
        assert plan_variant(store, variant).path == first.path
        make_adapter(Path("my-lora"), seed=5)
        assert plan_variant(store, variant).path != first.path
        with pytest.raises(IntegrityError, match="changed while"):
            materialise(store, first)

    @pytest.mark.parametrize(
        "other",
        [{"repo": "acme/another"}, {"revision": "f" * 40}, {"repo": "{base}"}],
        ids=["repo", "commit", "folder"],
    )
    def test_another_base_is_refused_by_name(
        self, store: Store, make_adapter: Any, tiny_base: Any, other: dict[str, str]
    ) -> None:
        fields = {key: value.format(base=tiny_base(dtype="float32", seed=1)) for key, value in other.items()}
        make_adapter(Path("my-lora"), **fields)
        plans = [plan_variant(store, parse_variant(text, "tiny")) for text in ("base", "./my-lora")]
        with pytest.raises(BaseMismatchError, match="another base") as caught:
            ground_of(store, plans, told=lambda text: None)
        assert caught.value.where == "./my-lora"

    def test_a_word_on_the_base_counts_before_the_adapter_s_own(
        self, store: Store, make_adapter: Any, tiny_base: Any
    ) -> None:
        base = tiny_base(dtype="float32")
        make_adapter(Path("my-lora"), repo="acme/mirror")
        word = parse_base(str(base))
        plans = [plan_variant(store, parse_variant(text, "tiny"), base=word) for text in ("1", "./my-lora")]
        ground = ground_of(store, plans, word=word, told=lambda text: None)
        assert ground is not None
        assert ground.base.path == base
        with pytest.raises(BaseMismatchError, match="not trained on this base"):
            ground_of(store, plans, word=parse_base("acme/mirror"), told=lambda text: None)
        make_adapter(Path("nobodys"), repo="", revision=None)
        with pytest.raises(ConfigError, match="does not say which base"):
            ground_of(store, [plan_variant(store, parse_variant("./nobodys", ""))], told=lambda text: None)
        plan = plan_variant(store, parse_variant("./nobodys", ""), base=word)
        assert ground_of(store, [plan], word=word, told=lambda text: None) is not None

    def test_a_copy_out_of_a_registry_is_what_its_record_says(self, store: Store) -> None:
        slug = _merged(store, 1, 2, rank=3, out=Path("out"))
        plan = plan_variant(store, parse_variant("./out", ""))
        assert [entry.digest for entry in plan.entries] == [store.merges("tiny")[slug]]
        ground = ground_of(store, [plan])
        assert ground is not None
        assert ground.quantisation is not None
        weights = Path("out/adapter_model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
        with pytest.raises(IntegrityError, match="its record describes"):
            plan_variant(store, parse_variant("./out", ""))

    def test_what_cannot_be_served_is_refused_by_name(self, store: Store, make_adapter: Any) -> None:
        make_adapter(Path("dora"), use_dora=True)
        with pytest.raises(UnsupportedAdapterError, match=r"(?i)dora"):
            plan_variant(store, parse_variant("./dora", ""))
        with pytest.raises(NotFoundError, match="no such folder"):
            plan_variant(store, parse_variant("./nowhere", ""))


class TestCheckpoints:
    def test_it_stands_alone_and_says_its_base(self, store: Store, tiny_base: Any, tmp_path: Path) -> None:
        shutil.copytree(tiny_base(dtype="float32"), tmp_path / "folded")
        plan = plan_variant(store, parse_variant("./folded", "tiny"))
        assert (plan.checkpoint, plan.composition, plan.entries) == (Path("folded"), None, ())
        assert ground_of(store, [plan]) is None
        beside = plan_variant(store, parse_variant("1", "tiny"))
        assert ground_of(store, [beside, plan]) is not None
        note = {"base": {"repo": "acme/another", "revision": "f" * 40}}
        (tmp_path / "folded" / "composition.json").write_text(json.dumps(note))
        with pytest.raises(BaseMismatchError, match="folded from another base") as caught:
            ground_of(store, [beside, plan])
        assert caught.value.where == "./folded"
        (tmp_path / "folded" / "tokenizer.json").unlink()
        (tmp_path / "folded" / "tokenizer_config.json").unlink()
        with pytest.raises(NotFoundError, match="without a tokenizer"):
            plan_variant(store, parse_variant("./folded", "tiny"))

    def test_a_ground_without_a_quantisation_is_the_folder_itself(self, tmp_path: Path) -> None:
        from plyfold.variants import Ground

        ground = Ground(base=BaseRef(repo="a/b", revision="", path=tmp_path), quantisation=None)
        assert ground.ensure(tmp_path / "cache") == tmp_path
