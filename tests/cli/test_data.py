"""`plyfold data`: counts that can be checked by hand, refusals that are train's own, rows that are training's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.load import load_tokenizer
from plyfold.adapters.base.resolve import TOKENIZER_FILES, sandbox_folder
from plyfold.cli.main import run
from plyfold.core.config import load_config
from plyfold.core.errors import ConfigError
from plyfold.data.dataset import load_rationales
from plyfold.evaluation.protocols import protocol
from plyfold.registry.store import find_store
from plyfold.stages.data.report import check_data
from plyfold.stages.plan.curriculum_plan import plan_curriculum
from plyfold.stages.prompts.tasks import make_rows

TAUGHT = [
    {"question": "What is 1+1+1?", "answer": "3", "cot": "Step 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3"},
    {"question": "what is  1+1+1", "answer": "3", "cot": "1+1=2\n2+1=3\nso 3\n#### 3"},
    {"question": "2+2+2?", "answer": "6", "cot": "Step 1: \\(2+2\\)=4\nStep 2: 4+2=6 Answer: 6"},
    {"question": "3+3?", "answer": "6", "cot": "3+3=6\n#### 6"},
    {"question": "4+4?", "answer": "8", "cot": "4+4=8\n#### 8"},
    {"question": "5+5+5?", "answer": "15", "cot": "5+5=10\n10+5=16\n#### 16"},
    {"question": "Six?", "answer": "#### six", "cot": "1+5=6\nso 6\n#### 6"},
    {"question": "7+7+7?", "answer": "21", "cot": "\\frac{}{}\n</think>7+7=14\n14+7=\\boxed{21}\n#### 21"},
    {"question": "8+8+8?", "answer": "24", "cot": "\\cdot</think>8+8=16\n16+8=24\n#### 24"},
]
HELD_OUT = [{"question": "9+9?", "answer": "18"}, {"question": "10+10?", "answer": "20"}]
COLUMNS = {"question": "question", "answer": "answer", "rationale": "cot"}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments for a config whose stages 1 and 2 read given rows, 3 the sandbox; its base has no tokenizer."""

    def make(taught: list[dict[str, Any]], held_out: list[dict[str, Any]] = HELD_OUT, **base: str) -> list[str]:
        for name, rows in (("teacher.json", taught), ("test.json", held_out)):
            (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
        data = {"path": str(tmp_path / "teacher.json"), "split": "train", "columns": COLUMNS}
        values = {
            "curriculum": "toy",
            "base": {"repo": "toy/base", "revision": "auto", "path": str(tmp_path), "compute_dtype": "float32", **base},
            "data": data,
            "eval": {"data": {"path": str(tmp_path / "test.json"), "split": "test"}},
            "stages": {
                "structure": {"number": 1, "task": "reconstruct"},
                "brevity": {"number": 2, "task": "complete", "data": {**data, "rows": [2, 9]}},
                "remedy": {"number": 3, "task": "rewrite", "data": {"path": "sandbox", "rows": [0, 30]}},
            },
        }
        path = tmp_path / "toy.yaml"
        path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        return ["-c", str(path)]

    return make


def _json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["data", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_every_number_of_a_small_file(config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "check", *config(TAUGHT))
    first, second, third = found["stages"]
    assert (found["trainable"], found["refusal"], found["unit"]) == (True, None, "characters")
    assert (first["name"], first["source"], first["rows"], first["usable"]) == ("1 structure", "teacher.json", 9, 5)
    assert first["skipped"] == {
        "fewer than 2 steps": {"rows": 2, "example": 3},
        "the rationale's answer is not the gold one": {"rows": 1, "example": 5},
        "no gold answer": {"rows": 1, "example": 6},
    }
    assert next(iter(first["skipped"])) == "fewer than 2 steps"  # the most frequent first
    assert first["steps"] == {"min": 2, "median": 2, "max": 3}
    assert first["length"]["min"] == len("Step 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3")
    assert first["duplicates"] == {"rows": 1, "example": 1}
    assert first["latex"] == {"rows": 1, "example": 2}  # a box around the answer goes
    assert first["latex_dropped"] == {"rows": 2, "example": 7}
    assert first["answers_stripped"] == {"rows": 2, "example": 2}
    assert first["answers_left"] == {"rows": 0, "example": None}
    assert first["gold_unreadable"] == {"rows": 1, "example": 6}
    assert first["scored"] == {"rows": 0, "example": None}
    assert (second["range"], second["rows"], second["usable"]) == ([2, 9], 7, 3)
    assert (second["duplicates"]["rows"], second["latex"]["example"]) == (0, 2)
    assert (third["source"], third["usable"]) == ("sandbox", 30)
    assert found["shared"] == [{"stages": ["1 structure", "2 brevity"], "questions": 3}]
    assert (found["eval"]["rows"], found["eval"]["usable"], found["eval"]["gold_unreadable"]["rows"]) == (2, 2, 0)


def test_the_table_says_the_same(config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", *config(TAUGHT)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["usable", "5", "3", "30", "2"] in shown
    assert ["rationale", "from", *["cot"] * 2, "answer"] in [line[:5] for line in shown]
    assert ["1", "structure", "fewer", "than", "2", "steps", "2", "3"] in shown
    assert ["1", "structure", "2", "brevity", "3"] in shown
    assert any(line[:1] == ["characters,"] for line in shown)


REFUSED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "overlap": (TAUGHT, [*HELD_OUT, {"question": "2 + 2 + 2", "answer": "6"}]),
    "no gold": (TAUGHT, [*HELD_OUT, {"question": "Eleven?", "answer": "#### eleven"}]),
    "unusable": (TAUGHT[3:7], HELD_OUT),
    "no gold comes first": (TAUGHT[3:7], [{"question": "3+3?", "answer": " "}]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_train_refuses_is_refused_alike(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str
) -> None:
    arguments = config(*REFUSED[case], path="sandbox")
    loaded = load_config(arguments[1])
    with pytest.raises(ConfigError) as of_train:
        plan_curriculum(loaded, find_store(tmp_path / "registry", create=True))
    with pytest.raises(ConfigError) as of_check:
        check_data(loaded).require()
    assert str(of_check.value) == str(of_train.value)
    found = _json(capsys, "check", *arguments, code=2)
    assert not found["trainable"]
    assert found["refusal"]["what"] == of_train.value.what
    assert found["stages"][0]["rows"] == len(REFUSED[case][0])  # the numbers are there all the same


def test_overlap_and_unreadable_golds_are_counted(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    overlapping, no_gold = REFUSED["overlap"], REFUSED["no gold"]
    found = _json(capsys, "check", *config(*overlapping), code=2)
    assert [stage["scored"] for stage in found["stages"][:2]] == [{"rows": 1, "example": 2}] * 2
    found = _json(capsys, "check", *config(*no_gold), code=2)
    assert (found["eval"]["usable"], found["eval"]["gold_unreadable"]) == (2, {"rows": 1, "example": 2})


def test_failures_are_not_mined_off_the_train_split_whoever_names_it(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [*config(TAUGHT, path="sandbox"), "stages.remedy.data=null", "data.split=test"]
    with pytest.raises(ConfigError) as of_train:
        plan_curriculum(load_config(arguments[1], arguments[2:]), find_store(tmp_path / "registry", create=True))
    for command in (["check"], ["preview", "remedy"]):
        assert run(["data", command[0], *arguments[:2], *command[1:], *arguments[2:]]) == 2
        assert of_train.value.what in capsys.readouterr().err


def test_lengths_are_tokens_where_the_tokenizer_is_and_no_weights_are_needed(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for file in sandbox_folder().iterdir():
        if file.name in TOKENIZER_FILES or file.name == "config.json":
            shutil.copy(file, folder)
    found = _json(capsys, "check", *config(TAUGHT[:1], path=str(folder)), "stages.brevity.data.rows=[0,1]")
    text = "Step 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3"
    tokens = len(load_tokenizer(sandbox_folder())(text, add_special_tokens=False)["input_ids"])
    assert found["unit"] == "tokens"
    assert found["stages"][0]["length"] == {"min": tokens, "median": tokens, "max": tokens}


@pytest.mark.slow
def test_rows_that_training_leaves_out_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["stages.structure.data.rows=[0,20]", "stages.structure.epochs=1"]
    few += ["stages.remedy.data.rows=[0,20]", "stages.remedy.epochs=4"]
    whole = _json(capsys, "check", *few, "stages.brevity.data.rows=[0,16]")
    assert [(stage["too_long"], stage["training_rows"]) for stage in whole["stages"]] == [(0, 20), (0, 16), (0, 80)]
    config = load_config("sandbox", few)
    rationales, _ = load_rationales(config.stages["structure"].data)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(sandbox_folder())
    lengths = sorted(
        len(tokenizer(row["prompt"] + row["completion"], add_special_tokens=False)["input_ids"])
        for row in make_rows(rationales, config.stages["structure"], protocol("zero-shot"), 0, len)
    )
    cut = [f"stages.structure.trainer.max_length={lengths[9]}", "stages.brevity.data.rows=[0,15]"]
    found = _json(capsys, "check", *few, *cut, code=2)
    longer = sum(length >= lengths[9] for length in lengths)  # the end takes a token, too
    assert [(stage["too_long"], stage["training_rows"]) for stage in found["stages"][:2]] == [(longer, 20), (0, 15)]
    assert found["refusal"]["what"] == "too few rows for one generation batch"
    assert found["refusal"]["where"] == "stages.brevity"


@pytest.mark.slow
def test_problems_that_can_never_be_enough_are_refused_as_train_refuses_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = _json(capsys, "check", "stages.remedy.mining.problems=4", code=2)
    assert (found["trainable"], found["refusal"]["where"]) == (False, "stages.remedy.mining")
    assert _json(capsys, "check", "stages.remedy.mining.problems=8")["trainable"]


def test_no_network_is_asked_for_a_tokenizer(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    revision = "0" * 40
    arguments = [*config(TAUGHT), "base.path=null", "base.repo=toy/nowhere", f"base.revision={revision}"]
    assert _json(capsys, "check", *arguments)["unit"] == "characters"


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), [("1", "structure"), ("brevity", "brevity"), ("remedy", "remedy")])
def test_previewed_rows_are_the_training_rows(capsys: pytest.CaptureFixture[str], stage: str, name: str) -> None:
    small = [f"stages.{name}.data={{rows: [1520, 1560], rationales: null}}", f"stages.{name}.epochs=1"]
    found = _json(capsys, "preview", stage, "-n", "40", "--seed", "7", *small)
    config = load_config("sandbox", small)
    rationales, _ = load_rationales(config.stages[name].data)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(sandbox_folder())
    rows = make_rows(
        rationales,
        config.stages[name],
        protocol("zero-shot"),
        7,
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    assert (found["total"], found["seed"], found["name"]) == (40, 7, name)
    assert [example["row"] for example in found["examples"]] == rows
    assert all(example["row"]["prompt"].startswith(f"Question: {example['source']['question']}\n")
               for example in found["examples"])  # fmt: skip
    default = _json(capsys, "preview", stage, *small)
    assert (default["seed"], len(default["examples"])) == (0, 3)
    assert default["examples"][0]["row"] != rows[0]


def test_a_preview_shows_what_each_masking_hides(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    taught = {"question": "Eggs?", "answer": "9", "cot": "Step 1: 2+3=5\nStep 2: 5-1=4\nStep 3: 4+5=9\nAnswer: 9"}
    shown = {
        ("one", "numbers"): "one step, their numbers, in 70% of the rows",
        ("consecutive", "step"): "consecutive, 50% of the steps and 2 at least, in 70% of the rows",
        ("keep-ends", "operators"): "keep-ends, 50% of the steps and 2 at least, their operators and results, in 70% "
                                    "of the rows",
    }  # fmt: skip
    prompts = []
    for (mode, hide), told in shown.items():
        masking = f"stages.brevity.masking={{mode: {mode}, hide: {hide}, minimum: 2, probability: 0.7}}"
        arguments = ["brevity", "-n", "8", *config([taught]), "stages.brevity.data.rows=null", masking,
                     "stages.brevity.epochs=8", "stages.brevity.unaided_share=0"]  # fmt: skip
        found = _json(capsys, "preview", *arguments)
        assert found["masking"] == told
        prompts.append({example["row"]["prompt"] for example in found["examples"]})
        assert run(["data", "preview", *arguments]) == 0
        assert f"masked: {told}" in capsys.readouterr().out
    start, end = "Question: Eggs?\nPartial solution:\n", "Solution:\n"
    assert f"{start}Step 1: [MASK]+[MASK]=[MASK]\nStep 2: 5-1=4\nStep 3: 4+5=[MASK]\n{end}" in prompts[0]
    assert f"{start}Step 1: [MASK]\nStep 2: [MASK]\nStep 3: 4+5=[MASK]\n{end}" in prompts[1]
    assert f"{start}Step 1: 2+3=5\nStep 2: 5[MASK]1=[MASK]\nStep 3: 4+5=[MASK]\n{end}" in prompts[2]


def test_rows_without_a_rationale_are_shown_as_what_they_are(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    taught = [TAUGHT[0], TAUGHT[2], {**TAUGHT[2], "question": "3+3+3?", "answer": "9", "cot": ""}]
    arguments = [*config(taught), "stages.brevity.data.rows=null"]
    capsys.readouterr()
    assert run(["data", "check", *arguments, "--json"]) == 0
    structure, brevity, _ = json.loads(capsys.readouterr().out)["stages"]
    assert (structure["usable"], structure["bare"]) == (2, 0)
    assert structure["skipped"] == {"no rationale": {"rows": 1, "example": 2}}
    assert (brevity["usable"], brevity["bare"], brevity["skipped"]) == (3, 1, {})
    assert brevity["steps"] == {"min": 2, "median": 2, "max": 2}
    assert run(["data", "check", *arguments]) == 0
    assert "gold answer only" in capsys.readouterr().out
    assert run(["data", "preview", "brevity", "-n", "3", *arguments]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--- steps") == 2
    assert "--- prompt (unaided)\nQuestion: 3+3+3?" in shown


def test_lengths_without_a_tokenizer_are_not_called_tokens(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _json(capsys, "preview", "2", *config(TAUGHT))["examples"][0]["row"]["teacher_tokens"] is None


def test_prompt_and_target_are_told_apart_on_a_terminal_only(
    config: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {**TAUGHT[0], "question": "What\x1b[2J is [bold]1+1+1[/bold]?"}
    arguments = ["data", "preview", "structure", "-n", "1", *config([hostile], path="none")]
    assert run(arguments) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert "\n--- prompt\nQuestion: What\\x1b[2J is [bold]1+1+1[/bold]?\nShuffled steps:\n- " in plain
    assert plain.endswith("\n--- target\nStep 1: 1+1=2\nStep 2: 2+1=3\nAnswer: 3\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(arguments) == 0
    styled = capsys.readouterr().out
    assert "\x1b[36mShuffled steps:" in styled
    assert "\x1b[32mAnswer: 3" in styled


def test_an_unknown_stage_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "preview", "clarity"]) == 3
    assert "1 structure, 2 brevity, 3 remedy" in capsys.readouterr().err
    assert run(["data", "preview", "1", "-n", "0"]) == 2


def test_both_commands_take_the_common_options_and_help_is_light(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("check", "preview"):
        assert run(["data", name, "--help"]) == 0
        assert "--debug" in capsys.readouterr().out
    code = (
        "import sys\nfrom plyfold.cli.main import run\nassert run(['data', 'check', '--help']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'omegaconf', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_real_rationales_and_gsm8k(real_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    teacher, train, test = map(real_data, ("bridge/stage3_error_samples.json", "gsm8k/train.jsonl", "gsm8k/test.jsonl"))
    remedy = "stages.remedy.data"
    found = _json(
        capsys, "check", "-c", "gsm8k", f"data.path={train}", f"eval.data.path={test}", f"{remedy}.path={teacher}",
        f"{remedy}.columns.answer=gold_answer", f"{remedy}.columns.rationale=teacher_cot",
    )  # fmt: skip
    wanted = ("rows", "usable", "latex", "latex_dropped", "answers_stripped", "answers_left")
    third = [found["stages"][2][key] for key in wanted]
    assert [each["rows"] if isinstance(each, dict) else each for each in third] == [568, 568, 558, 3, 359, 34]
    assert [stage["scored"]["rows"] for stage in found["stages"]] == [0, 0, 0]
    assert found["eval"]["rows"] == 1319
    assert {tuple(each["stages"]): each["questions"] for each in found["shared"]} == {("2 brevity", "3 remedy"): 172}


def test_a_config_among_the_variants_is_told_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "base", "mine.yaml"]) == 2
    assert "name it with -c mine.yaml" in capsys.readouterr().err
