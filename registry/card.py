"""The page of an adapter's repository: `README.md` with its metadata, and its scores as the Hub reads them.

A card is made of the record alone and never enters a digest: it can be rendered again at any time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.digest import short
from .record import Metric, Record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB = "https://huggingface.co"
LICENCES = {
    "apache-2.0", "mit", "openrail", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "cc-by-4.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "unknown",
}  # fmt: skip
"""Licences the Hub knows by these names; any other is `other` with a name and a link."""
LICENCE_OF_BASE = {"Qwen/Qwen2.5-3B": "qwen-research", "Qwen/Qwen2.5-3B-Instruct": "qwen-research"}
"""Bases whose licence is known whatever a record says, since a card binds who downloads it."""
VLLM_MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values `--max-lora-rank` takes (vLLM 0.32)."""
_HUB_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCATION = re.compile(r"hf://(?P<repo>[^@\s]+?)(?:@(?P<revision>[^/\s]+))?")


def render(record: Record, *, repo: str, parents: Mapping[str, str]) -> str:
    """`README.md` of an adapter's repository: YAML metadata, lineage as text, and how to load it.

    Args:
        record: The adapter's record; its `metrics` become the page's scores.
        repo: Hub id of the repository, `acme/gsm8k-s01-structure`.
        parents: Digest -> `hf://org/repo@commit`, for the ancestors whose place is known.
    """
    from huggingface_hub import ModelCardData

    licence = LICENCE_OF_BASE.get(record.base.repo, record.licence)
    tags = [f"curriculum:{record.curriculum}", f"stage:{record.stage.number}" if record.stage else record.kind]
    data = ModelCardData(
        base_model=record.base.repo,
        base_model_relation="adapter",  # the Hub guesses from file names otherwise
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*tags, "plyfold", "lora"],
        datasets=sorted({item.id for item in record.data if _HUB_DATASET.fullmatch(item.id)}) or None,
        license=licence if licence in LICENCES else "other",
        license_name=None if licence in LICENCES else _licence_name(licence),
        license_link=None if licence in LICENCES else f"{HUB}/{record.base.repo}/blob/main/LICENSE",
        model_name=repo.rpartition("/")[2],
        eval_results=_model_index(record) or None,
    )
    body = [_title(record), _lineage(record, parents), _scores(record), _loading(record, repo, parents)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in body if part) + "\n"


def eval_results(record: Record) -> str | None:
    """Text of `.eval_results/<dataset>.yaml`: accuracies on a dataset of the Hub; None where there is none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    dataset = _eval_dataset(record)
    scores = [metric for metric in record.metrics if metric.name == "accuracy"]
    if not _HUB_DATASET.fullmatch(dataset["id"]) or not scores:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=dataset["id"],
            task_id=dataset["id"].rpartition("/")[2],
            dataset_revision=dataset["revision"],
            value=metric.value,
            notes=_circumstances(metric, dataset["split"]) or None,
        )
        for metric in scores
    ]
    return str(yaml_dump(eval_result_entries_to_yaml(entries)))


# ---- scores


def _model_index(record: Record) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    dataset = _eval_dataset(record)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset["id"],
            dataset_name=dataset["id"],
            dataset_config=dataset["config"],
            dataset_split=dataset["split"],
            dataset_revision=dataset["revision"],
            metric_type=_line(metric.name),
            metric_name=_line(" ".join([metric.name, _circumstances(metric)])),
            metric_value=metric.value,
        )
        for metric in record.metrics
    ]


def _eval_dataset(record: Record) -> dict[str, Any]:
    """The data that scores are of, as the recipe's configuration names it; else the curriculum stands for it."""
    section = record.recipe.config.get("eval")
    found = section.get("data") if isinstance(section, dict) else None
    found = found if isinstance(found, dict) else {}
    text = {key: _line(str(found[key])) if found.get(key) else None for key in ("path", "name", "split", "revision")}
    return {
        "id": text["path"] or record.curriculum,
        **{key: text[key] for key in ("split", "revision")},
        "config": text["name"],
    }


def _circumstances(metric: Metric, split: str | None = None) -> str:
    interval = f"95 % interval {metric.ci95[0]:.4g} to {metric.ci95[1]:.4g}" if metric.ci95 else ""
    parts = [metric.protocol or "", f"split {split}" if split else "", f"n={metric.n}" if metric.n else "", interval]
    return ", ".join(part for part in parts if part)


def _scores(record: Record) -> str:
    if not record.metrics:
        return ""
    rows = [f"| {_text(item.name)} | {item.value:.4g} | {_text(_circumstances(item))} |" for item in record.metrics]
    return "\n".join(["## Scores", "", "| metric | value | measured |", "|---|---:|---|", *rows])


# ---- text


def _title(record: Record) -> str:
    base = f"[{record.base.repo}]({HUB}/{record.base.repo})"
    if record.stage:
        what = f"Stage {record.stage.number}, *{record.stage.name}*, of the curriculum *{record.curriculum}*"
    else:
        what = f"An adapter of the curriculum *{record.curriculum}* ({record.kind})"
    return (
        f"# {record.curriculum}: {record.label}\n\n{what}: a LoRA for {base}, made with plyfold {record.code.version}."
    )


def _lineage(record: Record, parents: Mapping[str, str]) -> str:
    weights = record.weights
    quantised = ", ".join(f"{key} {value}" for key, value in (record.base.quantisation or {}).items())
    lines = [
        "## Lineage",
        "",
        f"* adapter `{record.digest()}`",
        f"* base `{record.base.repo}` at `{record.base.revision}`" + (f", quantised: {quantised}" if quantised else ""),
    ]
    lines += [
        f"* parent `{parent.digest}`, {parent.role.replace('_', ' ')}, weight {parent.scale:g}"
        + (f", at `{_code(parents[parent.digest])}`" if parent.digest in parents else "")
        for parent in record.parents
    ]
    lines += [f"* requires `{digest}`" for digest in record.requires]
    lines += [
        f"* data `{_code(item.id)}`, split {_text(item.split)}, {item.rows:,} rows, `{item.sha256}`"
        for item in record.data
    ]
    lines += [
        f"* weights r {weights.r}, alpha {weights.alpha:g}, {_text(weights.dtype)}, tensors `{weights.digest}`",
        f"* recipe: seed {record.recipe.seed}, {record.recipe.steps} steps; the whole of it is in `lineage.json`",
        f"* created {record.created}",
    ]
    return "\n".join(lines)


def _loading(record: Record, repo: str, parents: Mapping[str, str]) -> str:
    """Three ways to load it, with the adapters that were active below it while it trained."""
    below = [parent.digest for parent in record.parents if parent.role == "active_during_training"]
    active = [match for digest in below if (match := _LOCATION.fullmatch(parents.get(digest, "")))]
    base = f'"{record.base.repo}", revision="{record.base.revision}"'
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        f'model = PeftModel.from_pretrained(model, "{repo}", adapter_name="own")',
    ]
    for number, match in enumerate(active, start=1):
        revision = f', revision="{match["revision"]}"' if match["revision"] else ""
        lines.append(f'model.load_adapter("{match["repo"]}", adapter_name="below{number}"{revision})')
    if active:
        names = ", ".join(f'"below{number}"' for number in range(1, len(active) + 1))
        lines.append(f'model.base_model.set_adapter([{names}, "own"], inference_mode=True)')
    # What vLLM serves is one adapter per request, so a stage with others below it is composed first.
    rank = next((rank for rank in VLLM_MAX_RANKS if rank >= record.weights.r), VLLM_MAX_RANKS[-1])
    name = repo.rpartition("/")[2]
    serve = (
        f"vllm serve {record.base.repo} --revision {record.base.revision} \\\n"
        f"  --enable-lora --max-lora-rank {rank} --lora-modules {name}={repo}"
    )
    note = ""
    if below:
        note = (
            f"This stage was trained on top of {len(below)} other adapter{'s' if len(below) > 1 else ''} "
            f"({', '.join(f'`{short(digest)}`' for digest in below)}): with this one alone the model is not the one "
            "that was trained. vLLM applies one adapter to a request, so compose them with plyfold first."
        )
    pull = f"plyfold pull hf://{repo} --with-parents\nplyfold tree {record.curriculum}"
    parts = [
        "## Loading",
        note,
        "With PEFT:",
        _fenced("python", "\n".join(lines)),
        "With vLLM:" if not below else "With vLLM, this adapter alone:",
        _fenced("bash", serve),
        "With plyfold, which checks every byte against the record and brings the parents along:",
        _fenced("bash", pull),
    ]
    return "\n\n".join(part for part in parts if part)


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _licence_name(licence: str) -> str:
    """As the Hub wants names: `qwen-research`."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "see-base-model"


def _code(text: str) -> str:
    """Foreign text fit for a code span: one line, no backticks."""
    return _line(text.replace("`", "'"))


def _text(text: str) -> str:
    """Foreign text as plain Markdown: one line, nothing of it markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join(text.split())
