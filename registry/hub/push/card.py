"""The page of an adapter's repository: `README.md` with its metadata, and its scores as the Hub reads them.

A card is made of the record and of what was learnt later, and never enters a digest: it can be rendered again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...record import Metric, Record
from . import card_text
from .card_facts import Facts
from .card_text import EMBEDDED_BASE, HUB, one_line, plain

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LICENCES = {
    "apache-2.0", "mit", "openrail", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "cc-by-4.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "unknown",
}  # fmt: skip
"""Licences the Hub knows by these names; any other is `other` with a name and a link."""
MAX_APART = 5
"""Scores on other terms that are listed."""
_HUB_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def render_card(record: Record, *, repo: str, facts: Facts) -> str:
    """`README.md` of an adapter's repository: YAML metadata, lineage as text, and how to load it.

    Args:
        record: The adapter's record.
        repo: Hub id of the repository, `acme/gsm8k-s01-structure`.
        facts: What is known beside the record; its scores come before those of the record.
    """
    from huggingface_hub import ModelCardData

    licence = card_text.licence_of(record)
    known = licence in LICENCES
    told = None if known or record.base.repo == EMBEDDED_BASE else f"{HUB}/{record.base.repo}/blob/main/LICENSE"
    tags = [f"curriculum:{record.curriculum}", f"stage:{record.stage.number}" if record.stage else record.kind]
    data = ModelCardData(
        base_model=record.base.repo,
        base_model_relation="adapter",  # the Hub guesses from file names otherwise
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*tags, "plyfold", "lora", *(["revoked"] if facts.revocations else [])],
        datasets=sorted({item.id for item in record.data if _HUB_DATASET.fullmatch(item.id)}) or None,
        license=licence if known else "other",
        license_name=None if known else _licence_name(licence),
        license_link=told,
        model_name=repo.rpartition("/")[2],
        eval_results=_model_index(record, facts) or None,
    )
    body = [
        card_text.revoked(record, facts),
        card_text.title(record),
        _scores(record, facts),
        card_text.merge_section(record, facts),
        card_text.loading(record, repo, facts),
        card_text.lineage(record, facts),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def eval_results(record: Record, facts: Facts) -> str | None:
    """Text of `.eval_results/<dataset>.yaml`: accuracies on a dataset of the Hub; None where there is none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    dataset = _eval_dataset(record, facts)
    scores = [metric for metric in _metrics(record, facts) if metric.name == "accuracy"]
    if not _HUB_DATASET.fullmatch(dataset["id"]) or not scores:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset["id"],
            task_id=dataset["id"].rpartition("/")[2],
            dataset_revision=dataset["revision"],
            value=metric.value,
            notes=_circumstances(metric, facts, dataset["split"]) or None,
        )
        for metric in scores
    ]
    return str(yaml_dump(eval_result_entries_to_yaml(entries)))


# ---- scores


def _metrics(record: Record, facts: Facts) -> Sequence[Metric]:
    return facts.metrics or record.metrics


def _model_index(record: Record, facts: Facts) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    dataset = _eval_dataset(record, facts)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset["id"],
            dataset_name=dataset["id"],
            dataset_config=dataset["config"],
            dataset_split=dataset["split"],
            dataset_revision=dataset["revision"],
            metric_type=one_line(metric.name),
            metric_name=one_line(" ".join([metric.name, _circumstances(metric, facts)])),
            metric_value=metric.value,
        )
        for metric in _metrics(record, facts)
    ]


def _eval_dataset(record: Record, facts: Facts) -> dict[str, Any]:
    """The data that scores are of; where they do not say, what the recipe's configuration names, or the curriculum."""
    section = record.recipe.config.get("eval")
    found = section.get("data") if isinstance(section, dict) else None
    found = found if isinstance(found, dict) else {}
    if facts.data:
        same = found.get("path") == facts.data.id
        found = {**facts.data.model_dump(), "path": facts.data.id, "name": found.get("name") if same else None}
    text = {key: one_line(str(found[key])) if found.get(key) else None for key in ("path", "name", "split", "revision")}
    return {
        "id": text["path"] or record.curriculum,
        **{key: text[key] for key in ("split", "revision")},
        "config": text["name"],
    }


def _circumstances(metric: Metric, facts: Facts, split: str | None = None) -> str:
    interval = f"95 % interval {metric.ci95[0]:.4g} to {metric.ci95[1]:.4g}" if metric.ci95 else ""
    parts = [
        f"as {facts.variant}" if facts.variant else "",
        metric.protocol or "",
        f"split {split}" if split else "",
        f"n={metric.n}" if metric.n else "",
        interval,
    ]
    return ", ".join(part for part in parts if part)


def _scores(record: Record, facts: Facts) -> str:
    metrics = _metrics(record, facts)
    if not metrics:
        return ""
    lines = ["## Scores", ""]
    whose = "whose exact sum this is" if record.kind == "merge" else "which is what was trained"
    lines += [f"Of stages {plain(facts.variant)} together, {whose}; on" if facts.variant else "On"]
    lines[-1] += f" {_eval_name(record, facts)}."
    lines += [f"Measured {plain(facts.terms)}."] if facts.terms else []
    lines += [""]
    rows = [f"| {plain(item.name)} | {item.value:.4g} | {plain(_circumstances(item, facts))} |" for item in metrics]
    table = [*lines, "| metric | value | measured |", "|---|---:|---|", *rows]
    if facts.apart:
        table += ["", f"Also scored, not to be compared with these: {plain('; '.join(facts.apart[:MAX_APART]))}."]
    return "\n".join(table)


def _eval_name(record: Record, facts: Facts) -> str:
    dataset = _eval_dataset(record, facts)
    name = plain(dataset["id"])
    if _HUB_DATASET.fullmatch(dataset["id"]):
        name = f"[{name}]({HUB}/datasets/{dataset['id']})"
    return name + (f", split {plain(dataset['split'])}" if dataset["split"] else "")


def _licence_name(licence: str) -> str:
    """As the Hub wants names: `qwen-research`."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "see-base-model"
