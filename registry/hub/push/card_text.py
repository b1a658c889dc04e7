"""The body of an adapter's page: what it is, whether it is revoked, what it came from, and how to load it.

Every text of a record may be somebody else's: it is put on the page as plain text.
"""

from __future__ import annotations

import re
from typing import Any

from ....adapters.spec import COMPOSITION_FILE
from ....core.console import printable
from ....core.disk.digest import short
from ...record import Record
from .card_facts import Facts, RelatedAdapter

HUB = "https://huggingface.co"
EMBEDDED_BASE = "plyfold/sandbox-base"
"""The one base that is no repository of the Hub: it comes with plyfold."""
VLLM_MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values `--max-lora-rank` takes (vLLM 0.32)."""
LICENCE_OF_BASE = {"Qwen/Qwen2.5-3B": "qwen-research", "Qwen/Qwen2.5-3B-Instruct": "qwen-research"}
"""Bases whose licence is known whatever a record says, since a card binds who downloads it."""
_LOCATION = re.compile(r"hf://(?P<repo>[^@\s]+?)(?:@(?P<revision>[^/\s]+))?")


def licence_of(record: Record) -> str:
    """The licence of the adapter, which is that of its base."""
    return LICENCE_OF_BASE.get(record.base.repo, record.licence)


def title(record: Record) -> str:
    """Heading, what the adapter is, and what made it."""
    if record.stage:
        what = f"Stage {record.stage.number}, *{plain(record.stage.name)}*, of the curriculum *{record.curriculum}*"
    elif record.kind == "merge":
        variant = record.recipe.details.get("variant")
        what = f"Stages {plain(str(variant))} of" if variant else f"{len(record.parents)} adapters of"
        what += f" the curriculum *{record.curriculum}*, merged into one adapter"
    else:
        what = f"An adapter of the curriculum *{record.curriculum}*, made with another tool"
    code = record.code
    commit = f" (commit `{_code(code.git)}`)" if code.git else ""
    made = f"made with plyfold {plain(code.version)}{commit}" if record.kind != "foreign" else "registered with plyfold"
    if code.dirty:
        made += (
            ". **The code that made it had changes that were not committed**, so the commit alone does not tell how "
            "it came about"
        )
    name = record.label + (
        f" {plain(str(record.recipe.details['variant']))}" if "variant" in record.recipe.details else ""
    )
    return f"# {record.curriculum}: {name}\n\n{what}: a LoRA for {_base(record)}, {made}."


def revoked(record: Record, facts: Facts) -> str:
    """A warning on top of the page of an adapter that should not be used; empty for others."""
    own = record.digest()
    lines = []
    for item in facts.revocations:
        whose = "" if item.digest == own else f", through {plain(item.label)} (`{short(item.digest)}`)"
        lines.append(f"> **Revoked** on {item.created[:10]}{whose}: {plain(item.reason)}")
    if not lines:
        return ""
    return "\n>\n".join(["> [!WARNING]\n> Do not use this adapter.", *lines])


def lineage(record: Record, facts: Facts) -> str:
    """Base, parents, data and recipe, each with what identifies it and a link to where it lies."""
    weights, base = record.weights, record.base
    quantised = ", ".join(f"{key} {value}" for key, value in (base.quantisation or {}).items())
    lines = ["## Lineage", "", f"* adapter `{record.digest()}`"]
    lines += [
        f"* base {_base(record)} at `{base.revision}`" + (f", quantised: {plain(quantised)}" if quantised else "")
    ]
    lines += [
        f"* parent {_named(parent.digest, facts)}, {parent.role.replace('_', ' ')}, weight {parent.scale:g}"
        for parent in record.parents
    ]
    lines += [f"* requires {_named(digest, facts)}" for digest in record.requires]
    lines += [
        f"* data `{_code(item.id)}`, split {plain(item.split)}, {item.rows:,} rows, `{item.sha256}`"
        for item in record.data
    ]
    lines += [f"* weights r {weights.r}, alpha {weights.alpha:g}, {plain(weights.dtype)}, tensors `{weights.digest}`"]
    if record.kind == "stage":
        lines += [f"* recipe: seed {record.recipe.seed}, {record.recipe.steps} steps"]
    lines += [
        f"* licence {plain(licence_of(record))}",
        f"* created {record.created}",
        "",
        "The whole of it is in [lineage.json](lineage.json), whose SHA-256 is the adapter's name.",
    ]
    return "\n".join(lines)


def merge_section(record: Record, facts: Facts) -> str:
    """Method, inputs and error of a merge; empty for others."""
    if record.kind != "merge":
        return ""
    details, composed = record.recipe.details, facts.composition
    norms = {
        str(each.get("record")): each.get("delta_norm")
        for each in _rows(composed.get("inputs"))
        if isinstance(each, dict)
    }
    lines = ["## Merge", "", "| input | weight | norm of its update |", "|---|---:|---:|"]
    for parent in record.parents:
        lines.append(
            f"| {_named(parent.digest, facts)} | {parent.scale:g} | {_number(norms.get(parent.digest), '.4g')} |"
        )
    method = f"Method `{_code(str(details.get('method', 'unknown')))}`, rank {record.weights.r}"
    settings = details.get("settings")
    if isinstance(settings, dict) and settings:
        method += ", " + ", ".join(f"{plain(str(key))} {plain(str(value))}" for key, value in settings.items())
    found = composed.get("certificate")
    lines += ["", f"{method}. {_certificate(found if isinstance(found, dict) else {}, details)}"]
    if composed:
        lines[-1] += f" Every module's error is in [{COMPOSITION_FILE}]({COMPOSITION_FILE})."
    return "\n".join(lines)


def _certificate(found: dict[str, Any], details: dict[str, Any]) -> str:
    if found.get("bit_exact") is True:
        return "It is the weighted sum of its inputs to the bit: nothing is dropped and nothing rounded."
    relative = found.get("relative_error", details.get("relative_error"))
    if not isinstance(relative, (int, float)):
        return ""
    text = f"Its distance from the weighted sum of its inputs, relative to that sum, is {relative:.3g} (Frobenius norm)"
    worst = found.get("worst_module")
    if isinstance(worst, dict) and isinstance(worst.get("relative_error"), (int, float)):
        text += f"; the worst module is `{_code(str(worst.get('name')))}` with {worst['relative_error']:.3g}"
    return text + "."


def loading(record: Record, repo: str, facts: Facts) -> str:
    """Three ways to load it, with the adapters that were active below it while it trained."""
    below = [parent.digest for parent in record.parents if parent.role == "active_during_training"]
    kin = [facts.kin.get(digest) for digest in below]
    note = ""
    if below:
        note = (
            f"This stage was trained on top of {len(below)} other adapter{'s' if len(below) > 1 else ''} "
            f"({', '.join(f'`{short(digest)}`' for digest in below)}): with this one alone the model is not the one "
            "that was trained."
        )
    if record.base.quantisation:
        note += (" " if note else "") + (
            "The base was quantised while it trained, as the lineage says; over the base in full precision results "
            "differ a little."
        )
    pull = f"plyfold pull hf://{repo} --with-parents\nplyfold verify --deep"
    parts = [
        "## Loading",
        note,
        "With PEFT:",
        _fenced("python", _peft(record, repo, kin)),
        "With plyfold, which checks every byte against the record and brings the parents along:",
        _fenced("bash", pull),
        *_vllm(record, repo, kin),
    ]
    return "\n\n".join(part for part in parts if part)


def _peft(record: Record, repo: str, kin: list[RelatedAdapter | None]) -> str:
    places = [match for each in kin if each and (match := _LOCATION.fullmatch(each.location or ""))]
    base = f'"{record.base.repo}", revision="{record.base.revision}"'
    lines = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    if record.base.repo == EMBEDDED_BASE:
        lines.append("from plyfold.adapters.base.resolve import sandbox_folder")
        base = "sandbox_folder()"
    lines += [
        "",
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        f'model = PeftModel.from_pretrained(model, "{repo}", adapter_name="own")',
    ]
    for number, match in enumerate(places, start=1):
        revision = f', revision="{match["revision"]}"' if match["revision"] else ""
        lines.append(f'model.load_adapter("{match["repo"]}", adapter_name="below{number}"{revision})')
    if places:
        names = ", ".join(f'"below{number}"' for number in range(1, len(places) + 1))
        lines.append(f'model.base_model.set_adapter([{names}, "own"], inference_mode=True)')
    return "\n".join(lines)


def _vllm(record: Record, repo: str, kin: list[RelatedAdapter | None]) -> list[str]:
    """One adapter goes with a request in vLLM, so a stage with others below it is composed with them first."""
    name, source, rank = repo.rpartition("/")[2], repo, record.weights.r
    intro, first = "With vLLM:", ""
    if kin:
        numbers = [each.stage for each in kin if each and each.stage]
        if record.stage is None or len(numbers) < len(kin):
            return []  # what would have to be composed has no name here
        numbers = sorted([*numbers, record.stage.number])
        name = f"{record.curriculum}-" + ".".join(f"s{number}" for number in numbers)
        stages = ",".join(map(str, numbers))
        first = f"plyfold merge --curriculum {record.curriculum} --stages {stages} -o {name}\n"
        intro = "With vLLM, which applies one adapter to a request, so all of them are composed into one first:"
        source, rank = name, rank + sum(each.r for each in kin if each)
    bucket = next((each for each in VLLM_MAX_RANKS if each >= rank), None)
    if bucket is None:
        return []
    base = f"{record.base.repo} --revision {record.base.revision}"
    if record.base.repo == EMBEDDED_BASE:
        base = '"$(python -c "from plyfold.adapters.base.resolve import sandbox_folder; print(sandbox_folder())")"'
    serve = f"vllm serve {base} \\\n  --enable-lora --max-lora-rank {bucket} --lora-modules {name}={source}"
    return [intro, _fenced("bash", first + serve)]


# ---- foreign text


def _base(record: Record) -> str:
    """The base with a link to the very revision."""
    repo, revision = record.base.repo, record.base.revision
    return f"`{repo}`, which comes with plyfold" if repo == EMBEDDED_BASE else f"[{repo}]({HUB}/{repo}/tree/{revision})"


def _named(digest: str, facts: Facts) -> str:
    """An adapter by its name, its digest, and the page where it lies."""
    kin = facts.kin.get(digest)
    if kin is None:
        return f"`{digest}`"
    match = _LOCATION.fullmatch(kin.location or "")
    name = plain(kin.name)
    if match:
        name = f"[{name}]({HUB}/{match['repo']}" + (f"/tree/{match['revision']})" if match["revision"] else ")")
    return f"{name} `{digest}`"


def _rows(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object, spec: str) -> str:
    return format(value, spec) if isinstance(value, (int, float)) else ""


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _code(text: str) -> str:
    """Foreign text fit for a code span: one line, no backticks."""
    return one_line(text.replace("`", "'"))


def plain(text: str) -> str:
    """Foreign text as plain Markdown: one line, nothing of it markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(text))


def one_line(text: str) -> str:
    """Foreign text without line breaks, which would end whatever it stands in, and without what cannot be seen."""
    return printable(" ".join(text.split()))
