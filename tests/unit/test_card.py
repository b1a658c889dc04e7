"""Model cards: the metadata the Hub reads, the lineage as text, and code that loads the adapter as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from plyfold.registry.card import eval_results, render
from plyfold.registry.card_facts import Facts, Kin
from plyfold.registry.record import BaseRecord, DataRef, Metric, Recipe

PARENT = f"sha256:{'a' * 64}"
AT = f"hf://acme/toy-s01-structure@{'b' * 40}"
BELOW = Kin(name="toy 1 structure", stage=1, r=4, location=AT)
METRICS = [
    Metric(name="accuracy", value=0.625, n=400, ci95=(0.576, 0.671), protocol="zero-shot"),
    Metric(name="tokens", value=41.25, n=400),
]
GSM8K = {"eval": {"data": {"path": "openai/gsm8k", "name": "main", "split": "test", "revision": "c" * 40}}}


def front_matter(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_metadata_is_what_the_hub_reads(make_record: Any) -> None:
    data = [
        DataRef(id="openai/gsm8k", rows=10, sha256=PARENT),
        DataRef(id="teacher.json", rows=10, sha256=PARENT),
    ]
    record = make_record(2, "brevity", [PARENT], metrics=METRICS, data=data, recipe=Recipe(config=GSM8K))
    text = render(record, repo="acme/toy-s02-brevity", facts=Facts(kin={PARENT: BELOW}))
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
    matter = front_matter(render(record, repo="acme/toy-s01-structure", facts=Facts()))
    assert tuple(matter.get(key) for key in ("license", "license_name", "license_link")) == expected


def test_lineage_names_every_ancestor_and_where_it_is(make_record: Any) -> None:
    record = make_record(2, "brevity", [PARENT, f"sha256:{'d' * 64}"], requires=[PARENT])
    text = render(record, repo="acme/toy-s02-brevity", facts=Facts(kin={PARENT: BELOW}))
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
    text = render(record, repo="acme/toy-s01-structure", facts=Facts())
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


def test_the_code_of_the_card_loads_the_trained_model(
    make_record: Any, make_adapter: Any, tiny_base: Any, tmp_path: Path
) -> None:
    """The PEFT lines, run on folders in place of repositories, give base + parent + own, to the bit of a manual sum."""
    import torch

    record = make_record(2, "brevity", [PARENT])
    below, own, base = make_adapter(tmp_path / "below", seed=1), make_adapter(tmp_path / "own", seed=2), tiny_base()
    text = render(record, repo="acme/own", facts=Facts(kin={PARENT: BELOW}))
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
