"""Model cards: the metadata the Hub reads, the lineage as text, and code that loads the adapter as it was trained."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from plyfold.registry.hub.push.card import eval_results, render_card
from plyfold.registry.hub.push.card_facts import Facts, RelatedAdapter, facts_of
from plyfold.registry.lineage.scores import attest_scores
from plyfold.registry.record import BaseRecord, Code, DataRef, Metric, Parent, Recipe
from plyfold.registry.store import Store, find_store
from plyfold.registry.trust.revocation import Revocation

PARENT = f"sha256:{'a' * 64}"
AT = f"hf://acme/toy-s01-structure@{'b' * 40}"
BELOW = RelatedAdapter(name="toy 1 structure", stage=1, r=4, location=AT)
METRICS = [
    Metric(name="accuracy", value=0.625, n=400, ci95=(0.576, 0.671), protocol="zero-shot"),
    Metric(name="tokens", value=41.25, n=400),
]
GSM8K = {"eval": {"data": {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": "c" * 40}}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return find_store(tmp_path / "registry", create=True)


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_metadata_is_what_the_hub_reads(make_record: Any) -> None:
    data = [
        DataRef(id="openai/gsm8k", rows=10, sha256=PARENT),
        DataRef(id="teacher.json", rows=10, sha256=PARENT),
    ]
    record = make_record(2, "brevity", [PARENT], metrics=METRICS, data=data, recipe=Recipe(config=GSM8K))
    text = render_card(record, repo="acme/toy-s02-brevity", facts=Facts(kin={PARENT: BELOW}))
    matter = front_matter(text)
    assert matter["base_model"] == "acme/tiny-qwen2"
    assert matter["base_model_relation"] == "adapter"
    assert matter["library_name"] == "peft"
    assert matter["tags"] == ["curriculum:toy", "stage:2", "plyfold", "lora"]
    assert matter["datasets"] == ["openai/gsm8k"]
    (index,) = matter["model-index"]
    assert index["name"] == "toy-s02-brevity"
    (result,) = index["results"]
    assert result["dataset"] == {
        "name": "openai/gsm8k",
        "type": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "revision": "c" * 40,
    }
    assert [(item["type"], item["value"]) for item in result["metrics"]] == [("accuracy", 0.625), ("tokens", 41.25)]
    assert ModelCard(text).data.eval_results  # the client itself reads it back


@pytest.mark.parametrize(
    ("repo", "licence", "expected"),
    [
        ("Qwen/Qwen2.5-3B", "other", ("other", "qwen-research", "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE")),
        ("acme/tiny-qwen2", "apache-2.0", ("apache-2.0", None, None)),
        ("acme/tiny-qwen2", "Own Terms", ("other", "own-terms", "https://huggingface.co/acme/tiny-qwen2/blob/main/LICENSE")),
    ],
)  # fmt: skip
def test_the_licence_is_the_bases(make_record: Any, repo: str, licence: str, expected: tuple[str, ...]) -> None:
    record = make_record(base=BaseRecord(repo=repo, revision="0" * 40), licence=licence)
    matter = front_matter(render_card(record, repo="acme/toy-s01-structure", facts=Facts()))
    assert tuple(matter.get(key) for key in ("license", "license_name", "license_link")) == expected


def test_lineage_names_every_ancestor_and_where_it_is(make_record: Any) -> None:
    record = make_record(2, "brevity", [PARENT, f"sha256:{'d' * 64}"], requires=[PARENT])
    text = render_card(record, repo="acme/toy-s02-brevity", facts=Facts(kin={PARENT: BELOW}))
    assert record.digest() in text
    page = f"https://huggingface.co/acme/toy-s01-structure/tree/{'b' * 40}"
    assert f"* parent [toy 1 structure]({page}) `{PARENT}`, active during training, weight 1\n" in text
    assert f"* parent `sha256:{'d' * 64}`, active during training, weight 1\n" in text
    assert f"* requires [toy 1 structure]({page}) `{PARENT}`" in text
    assert f"(https://huggingface.co/acme/tiny-qwen2/tree/{record.base.revision})" in text
    assert "plyfold pull hf://acme/toy-s02-brevity --with-parents" in text


def test_foreign_text_cannot_break_the_page(make_record: Any) -> None:
    nasty = "x`\n---\n# <script>alert(1)</script> | y"
    data = [DataRef(id=nasty, split=nasty, rows=1, sha256=PARENT)]
    record = make_record(data=data, metrics=[Metric(name=nasty, value=1.0, protocol=nasty)], licence=nasty)
    text = render_card(record, repo="acme/toy-s01-structure", facts=Facts())
    assert front_matter(text)["model-index"][0]["results"][0]["metrics"][0]["type"] == " ".join(nasty.split())
    body = text.split("\n---\n\n", 1)[1].splitlines()
    assert not [line for line in body if line.startswith(("---", "# <", "<script"))]


def test_scores_go_to_a_dataset_of_the_hub_only(make_record: Any) -> None:
    text = eval_results(make_record(metrics=METRICS, recipe=Recipe(config=GSM8K)), Facts())
    assert text is not None
    (entry,) = yaml.safe_load(text)
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "gsm8k", "revision": "c" * 40}
    assert entry["value"] == 0.625
    assert entry["notes"] == "zero-shot, split test, n=400, 95 % interval 0.576 to 0.671"
    assert eval_results(make_record(metrics=METRICS), Facts()) is None
    assert eval_results(make_record(recipe=Recipe(config=GSM8K)), Facts()) is None


def test_a_revoked_adapter_says_so_before_anything_else(make_record: Any) -> None:
    record = make_record(2, "brevity", [PARENT])
    own = Revocation(digest=record.digest(), label="2 brevity", reason="bad | `rows`", created="2026-03-04T05:06:07Z")
    above = Revocation(digest=PARENT, label="1 structure", reason="worse", created="2026-03-05T05:06:07Z")
    text = render_card(record, repo="acme/toy-s02-brevity", facts=Facts(revocations=(own, above)))
    assert front_matter(text)["tags"][-1] == "revoked"
    warning = text.split("---\n", 2)[2].partition("# toy")[0]
    assert "**Revoked** on 2026-03-04: bad \\| \\`rows\\`\n" in warning
    assert f"**Revoked** on 2026-03-05, through 1 structure (`{'a' * 12}`): worse\n" in warning
    assert "revoked" not in render_card(record, repo="acme/toy-s02-brevity", facts=Facts()).lower()


def test_code_with_changes_is_told(make_record: Any) -> None:
    told = [
        "not committed"
        in render_card(make_record(code=Code(version="1", git="c" * 40, dirty=dirty)), repo="a/b", facts=Facts())
        for dirty in (True, False, None)
    ]
    assert told == [True, False, False]


def test_the_embedded_base_is_found_by_the_code_of_the_page(make_record: Any) -> None:
    """It is no repository of the Hub, so the page must not send anybody there."""
    record = make_record(base=BaseRecord(repo="plyfold/sandbox-base", revision="0" * 40))
    text = render_card(record, repo="acme/toy-s01-structure", facts=Facts())
    assert "huggingface.co/plyfold" not in text
    assert 'from_pretrained("plyfold/sandbox-base"' not in text
    (inner,) = re.findall(r'\$\(python -c "(.*?)"\)', text)
    found = io.StringIO()
    with contextlib.redirect_stdout(found):
        exec(inner)
    assert (Path(found.getvalue().strip()) / "config.json").is_file()


def test_scores_measured_later_are_those_of_what_was_trained(store: Store, make_record: Any, make_adapter: Any) -> None:
    """A stage is shown with the variant it completes, never with scores of other adapters or an older self."""
    one = store.publish(make_adapter(store.root / "one", seed=1), make_record(1))
    store.set_ref("toy", 1, one)
    two = store.publish(make_adapter(store.root / "two", seed=2), make_record(2, "brevity", [one]))
    store.set_ref("toy", 2, two)
    attest_scores(store, "toy", [2], [Metric(name="accuracy", value=0.1)])
    attest_scores(store, "toy", [1, 2], METRICS)
    attest_scores(store, "toy", [], [Metric(name="accuracy", value=0.2)])
    facts = facts_of(store, store.load(two), {})
    assert (facts.variant, facts.metrics) == ("1+2", tuple(METRICS))
    assert facts_of(store, store.load(one), {}).metrics == ()
    text = render_card(store.load(two).record, repo="acme/toy-s02-brevity", facts=facts)
    assert "| accuracy | 0.625 | as 1+2, zero-shot, n=400, 95 % interval 0.576 to 0.671 |" in text
    assert front_matter(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.625
    for weight, shown in ((1.0, True), (0.5, False)):
        parents = [Parent(role="merge_input", digest=digest, scale=weight) for digest in (one, two)]
        made = make_record(None, recipe=Recipe(details={"method": "exact"}))
        record = made.model_copy(update={"parents": parents})
        merge = store.publish(make_adapter(store.root / f"{weight}", seed=3), record)
        assert bool(facts_of(store, store.load(merge), {}).metrics) == shown


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "[]", '{"inputs": 3, "certificate": []}', '{"certificate": {"worst_module": 1}}']
)
def test_a_composition_of_another_shape_costs_the_page_a_line_at_most(
    store: Store, make_record: Any, make_adapter: Any, text: str
) -> None:
    folder = make_adapter(store.root / "merge")
    (folder / "composition.json").write_text(text)
    record = make_record(None, parents=[PARENT], recipe=Recipe(details={"method": "svd", "relative_error": 0.25}))
    entry = store.load(store.publish(folder, record))
    page = render_card(entry.record, repo="acme/toy-merge", facts=facts_of(store, entry, {}))
    assert "Method `svd`, rank 4." in page
    assert "relative to that sum, is 0.25 (Frobenius norm)" in page


def test_the_code_of_the_card_loads_the_trained_model(
    make_record: Any, make_adapter: Any, tiny_base: Any, tmp_path: Path
) -> None:
    """The PEFT lines, run on folders in place of repositories, give base + parent + own, to the bit of a manual sum."""
    import torch

    record = make_record(2, "brevity", [PARENT])
    below, own, base = make_adapter(tmp_path / "below", seed=1), make_adapter(tmp_path / "own", seed=2), tiny_base()
    text = render_card(record, repo="acme/own", facts=Facts(kin={PARENT: BELOW}))
    code = text.split("```python\n")[1].split("```")[0]
    for name, path in (("acme/own", own), ("acme/toy-s01-structure", below), (record.base.repo, base)):
        code = code.replace(f'"{name}"', repr(str(path)))
    scope: dict[str, Any] = {}
    exec(code, scope)
    layer = dict(scope["model"].named_modules())["base_model.model.model.layers.0.self_attn.q_proj"]
    x_BI = torch.randn(3, layer.in_features, dtype=layer.base_layer.weight.dtype)
    delta = sum(layer.get_delta_weight(name) for name in ("below1", "own"))
    expected = layer.base_layer(x_BI).float() + x_BI.float() @ delta.float().T
    torch.testing.assert_close(layer(x_BI).float(), expected, rtol=0.05, atol=0.05)  # bf16 layers
    assert (layer(x_BI).float() - layer.base_layer(x_BI).float()).abs().max() > 0.2
