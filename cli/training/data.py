"""`plyfold data`: what a config's rows are, what a stage will be shown, and rows that a teacher writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core.reading.strict_json import parse_json
from ..options import config_option, dry_run_option, json_option
from .train import DEFAULT_CONFIG

if TYPE_CHECKING:
    from ...core.config import DataConfig
    from ...stages.data.preview import Preview
    from ...stages.data.report import DataCheck, Finding, RowsCheck, Spread
    from ...stages.teacher.collect import RationalesPlan


@click.group("data")
def data_command() -> None:
    """Look at training rows before training on them, or have a teacher write them."""


@data_command.command("check", short_help="What every stage's rows are, and what train would refuse.")
@config_option
@json_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def check_command(config: str | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """What every stage's rows are: usable or why not, lengths, repetitions, overlap with the evaluation.

    Reads no weights and trains nothing. Ends with the error that train would end with because of the rows.
    """
    from ...core.config import load_config, require_read_rows
    from ...core.console import emit_json
    from ...stages.data.report import check_data

    loaded = load_config(config or DEFAULT_CONFIG, overrides)
    require_read_rows(loaded, overrides)
    check = check_data(loaded)
    if as_json:
        emit_json(check.to_json())
    else:
        _show_check(check)
    _warn_of_unread(check)
    check.require()


@data_command.command("preview", short_help="The first training rows of a stage.")
@config_option
@click.option("-n", "num_rows", type=int, default=3, show_default=True, help="How many rows to show.")
@click.option("--seed", type=int, help="Of draws and order; else the config's.")
@json_option
@click.argument("stage")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def preview_command(
    config: str | None, num_rows: int, seed: int | None, as_json: bool, stage: str, overrides: tuple[str, ...]
) -> None:
    """The first rows of STAGE (its name or number): the mapped row, and the prompt and target made of it."""
    from ...core.config import load_config, require_read_rows
    from ...core.console import emit_json
    from ...stages.data.preview import preview_stage

    loaded = load_config(config or DEFAULT_CONFIG, overrides)
    require_read_rows(loaded, overrides)
    preview = preview_stage(loaded, stage, num_rows, seed)
    if as_json:
        emit_json(preview.to_json())
    else:
        _show_preview(preview)


@data_command.command("rationales", short_help="Have a teacher behind an endpoint write verified rationales.")
@config_option
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="A .jsonl file; continued where it exists.")  # fmt: skip
@click.option("--endpoint", required=True, help="Root of an OpenAI-compatible API, such as http://localhost:8000/v1.")
@click.option("--model", required=True, help="The teacher's name at the endpoint.")
@click.option("--key-env", help="Environment variable that holds the key; else OPENAI_API_KEY if it is set.")
@click.option("--stage", help="Take the rows of this stage (name or number) instead of the curriculum's.")
@click.option("--attempts", type=int, default=4, show_default=True, help="Completions asked of a problem at most.")
@click.option("--concurrency", type=int, default=8, show_default=True, help="Requests in flight at once.")
@click.option("--temperature", type=float, default=0.6, show_default=True)
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--max-tokens", type=int, default=4096, show_default=True, help="Longest completion, thoughts included.")
@click.option(
    "--request",
    "fields",
    multiple=True,
    metavar="FIELD=JSON",
    help="Another field of each request, such as reasoning_effort=low; nothing after = leaves one out.",
)
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds a completion has.")
@dry_run_option
@json_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def rationales_command(
    config: str | None,
    out: Path,
    endpoint: str,
    model: str,
    key_env: str | None,
    stage: str | None,
    attempts: int,
    concurrency: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    fields: tuple[str, ...],
    timeout_s: float,
    dry_run: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Have a teacher write rationales for a config's questions, and keep those whose answer is the gold one.

    The file can be trained on with the overrides named at the end, data.path=OUT first of all. What is not kept lies
    beside it with its reason, and so does a manifest. A run that was interrupted continues where it stopped; a
    rerun with more --attempts asks further.
    """
    from ...core.config import load_config
    from ...core.console import emit_json
    from ...core.errors import ConfigError
    from ...stages.prompts.tasks import find_stage
    from ...stages.teacher.chat import Endpoint
    from ...stages.teacher.collect import SamplingOptions, collect_rationales, find_questions, plan_rationales

    key = os.environ.get(key_env or "OPENAI_API_KEY", "").strip()
    if key_env and not key:
        raise ConfigError("the variable that should hold the key is not set", where="--key-env", found=key_env)
    loaded = load_config(config or DEFAULT_CONFIG, overrides)
    asked = Endpoint(url=endpoint, model=model, key=key, timeout_s=timeout_s)
    asking = SamplingOptions(
        attempts=attempts,
        concurrency=concurrency,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=loaded.seed,
        request=dict(map(_request_field, fields)),
    )
    questions = find_questions(loaded, stage)
    plan = plan_rationales(questions, out, asked, asking)
    if dry_run:
        if as_json:
            emit_json(plan.to_json())
        else:
            _show_plan(plan)
        return
    result = {"output": str(out), **collect_rationales(plan, asked)}
    if as_json:
        emit_json(result)
    else:
        section = f"stages.{find_stage(loaded, stage)}.data" if stage else "data"
        _show_collected(plan, result, _training_on(out, section, questions))


def _request_field(text: str) -> tuple[str, object]:
    """A field of a request and its value: JSON, or else the text itself; None where there is none."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text!r} is not FIELD=JSON", param_hint="--request")
    try:
        return name, parse_json((value or "null").encode())
    except ValueError:
        return name, value


def _show_check(check: DataCheck) -> None:
    from ...core.console import print_table
    from ...data.columns import OUR_COLUMNS

    columns = (*check.stages, check.evaluation)
    read_from: list[list[object]] = [
        [f"{name} from", *(_joined(each.columns.get(name, "")) for each in columns)] for name in OUR_COLUMNS
    ]
    facts: list[list[object]] = [
        ["source", *(each.source for each in columns)],
        ["split", *(each.split for each in columns)],
        ["range", *(_range(each) for each in columns)],
        *read_from,
        ["rows read", *(each.rows for each in columns)],
        ["usable", *(each.usable for each in columns)],
        ["of these, gold answer only", *(each.bare for each in check.stages), ""],
        ["steps, min/median/max", *(_spread(each.steps) for each in columns)],
        [f"{check.unit}, min/median/max", *(_spread(each.length) for each in columns)],
        ["LaTeX kept", *(_finding(each.latex) for each in check.stages), ""],
        ["LaTeX outside the steps only", *(_finding(each.latex_dropped) for each in check.stages), ""],
        ["answer taken out of a step", *(_finding(each.answers_stripped) for each in check.stages), ""],
        ["answer among the operands, too", *(_finding(each.answers_left) for each in check.stages), ""],
        ["gold answer unreadable", *(_finding(each.gold_unreadable) for each in columns)],
        ["question seen before", *(_finding(each.duplicates) for each in columns)],
        ["training rows too long", *(_too_long(each) for each in columns)],
        ["question of the evaluation", *(_finding(each.scored) for each in check.stages), ""],
    ]
    names = [each.name for each in columns]
    print_table(
        ["", *names],
        facts,
        title=check.curriculum,
        right=names,
        caption="n (row i): n usable rows, the first of them row i of its split, from 0"
        + ("" if check.unit == "tokens" else "; the base's tokenizer is not on this disk: lengths in characters"),
    )
    skipped = [
        [stage.name, reason, found.rows, found.example]
        for stage in check.stages
        for reason, found in stage.skipped.items()
    ]
    if skipped:
        print_table(["stage", "skipped because", "rows", "first row"], skipped, right=("rows", "first row"))
    if check.shared:
        shared = [[*pair, count] for pair, count in check.shared.items()]
        print_table(["stage", "and", "questions in both"], shared, right=("questions in both",))


def _joined(column: str | list[str]) -> str:
    return column if isinstance(column, str) else " + ".join(column)


def _warn_of_unread(check: DataCheck) -> None:
    """Say which columns may hold the rest of the questions; stages that read the same rows are told of once."""
    from ...core.console import warn
    from ...data.columns import question_columns

    told = set()
    for each in (*check.stages, check.evaluation):
        for name, found in each.unread.items():
            asked = each.columns["question"]
            columns = ",".join(question_columns([asked] if isinstance(asked, str) else asked, [name]))
            text = (
                f"{each.source}: column {name} holds text in {found.rows} of {each.rows} rows (first "
                f"row {found.example}) and is not read; if it is part of the question: columns.question=[{columns}]"
            )
            if text not in told:
                told.add(text)
                warn(text)


def _range(check: RowsCheck) -> str:
    start, stop = check.range
    return "all" if stop is None and not start else f"[{start}, {stop})"


def _spread(spread: Spread | None) -> str:
    return f"{spread.min} / {spread.median:g} / {spread.max}" if spread else ""


def _finding(finding: Finding) -> str:
    return f"{finding.rows} (row {finding.example})" if finding.rows else "0"


def _too_long(check: RowsCheck) -> str:
    return "" if check.too_long is None else f"{check.too_long} of {check.training_rows}"


def _show_preview(preview: Preview) -> None:
    from rich.text import Text

    from ...core.console import stdout

    console = stdout()

    def show(title: str, text: str, style: str = "") -> None:
        console.print(Text(f"--- {title}", style="bold"))
        console.print(Text(text.removesuffix("\n"), style=style))

    note = ", if every problem were a failure" if preview.task == "rewrite" else ""
    console.print(
        Text(f"{preview.number} {preview.name} · {preview.task} · seed {preview.seed} · {preview.total} rows{note}")
    )
    if preview.masking:
        console.print(Text(f"masked: {preview.masking}"))
    for place, example in enumerate(preview.examples, start=1):
        source, row = example.rationale, example.row
        console.print(Text(f"\n=== row {place} of {preview.total}", style="bold"))
        show("question", source.question)
        if source.steps:
            show("steps", "\n".join(f"{number}. {step}" for number, step in enumerate(source.steps, start=1)))
        show("answer", source.answer)
        show("prompt (unaided)" if row.get("unaided") else "prompt", row["prompt"], "cyan")
        if "completion" in row:
            show("target", row["completion"], "green")
        else:
            took = "took" if source.steps else "usually takes"
            tokens = row["teacher_tokens"]
            show("gold" if tokens is None else f"gold (the teacher {took} {tokens} tokens)", row["gold"], "green")


def _show_plan(plan: RationalesPlan) -> None:
    from ...core.console import print_table

    facts: list[list[object]] = [
        ["rows read", plan.rows],
        *([f"not asked: {reason}", count] for reason, count in plan.skipped.items()),
        ["solved on file", plan.kept],
        ["attempts used up", plan.given_up],
        ["to be asked", len(plan.problems)],
        ["requests, at most", f"{plan.most_requests:,}"],
        ["prompt tokens, at most", f"{plan.most_prompt_tokens:,}"],
        ["completion tokens, at most", f"{plan.most_completion_tokens:,}"],
    ]
    caption = "prompt tokens are counted as bytes, which is several times too many"
    title = f"{plan.source}, asked of {plan.about['teacher']['model']} at {plan.about['endpoint']}"
    print_table(["", plan.out.name], facts, title=title, right=(plan.out.name,), caption=caption)


def _training_on(out: Path, section: str, asked: DataConfig) -> str:
    """Overrides that read all rows of the file in the place of those that were asked about."""
    changed = [f"{section}.path={out}"]
    changed += [f"{section}.{name}=null" for name in ("rows", "rationales") if getattr(asked, name) is not None]
    if (asked.columns["question"], asked.columns["answer"]) != ("question", "answer"):
        changed.append(f"'{section}.columns={{question: question, answer: answer, rationale: answer}}'")
    return " ".join(changed)


def _show_collected(plan: RationalesPlan, result: dict[str, Any], overrides: str) -> None:
    from ...core.console import print_table

    facts: list[list[object]] = [
        ["rationales kept", result["kept"]],
        *([f"rejected: {reason}", count] for reason, count in result["rejected"].items()),
        ["questions without one", result["unsolved"]],
        ["requests of this run", result["requests"]],
        ["tries repeated", result["retries"]],
        ["completion tokens", f"{result['tokens']['completion']:,}"],
    ]
    print_table(["", plan.out.name], facts, right=(plan.out.name,), caption=f"next: {overrides}")
