from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plyfold.core.config import (
    LINEAR_MODULES,
    MAX_STAGE,
    build_config,
    config_dict,
    load_config,
    require_read_rows,
    save_config,
)
from plyfold.core.errors import ConfigError, NotFoundError
from plyfold.registry.record import StageId

MINIMAL = """
curriculum: tiny
base: {repo: acme/base, revision: auto}
data: {path: sandbox}
eval: {data: {path: sandbox, split: test}}
stages:
  structure: {number: 1, task: reconstruct, trainer: {learning_rate: 1e-4}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_are_typed(path: Path) -> None:
    config = load_config(path, ["adapter.r=8", "stages.structure.trainer.learning_rate=3e-4", "seed=7"])
    assert config.adapter.r == 8
    assert config.stages["structure"].trainer["learning_rate"] == 3e-4
    assert config.seed == 7


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("adapter.rank=8", "did you mean|known keys"),
        ("stages.structure.unaided_shares=0.1", "did you mean"),
        ("base.compute_dtpe=float32", "did you mean"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(path: Path, override: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"(?i){hint}"):
        load_config(path, [override])


@pytest.mark.parametrize("override", ["adapter.r=many", "seed=abc", "stages.structure.number=one"])
def test_a_value_of_the_wrong_type_is_refused_by_its_key(path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert caught.value.where == f"{override.partition('=')[0]}, an override"


@pytest.mark.parametrize("key", ["[[[[", "seed[", "data]path", "data[]", "]", "x" * 100_000, "[" * 100_000 + ".yaml"])
def test_a_key_that_cannot_be_one_is_refused_in_a_line(path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="not key=value") as refused:
        load_config(path, [key if key.endswith("yaml") else f"{key}=1"])
    assert len(str(refused.value)) < 500


def test_an_override_without_a_value_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        load_config(path, ["adapter.r"])


def test_a_config_in_an_overrides_place_and_a_value_that_is_no_yaml_are_told_how_to_write_it(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["mine.yaml"])
    assert caught.value.next_step == "name a config with -c mine.yaml"
    with pytest.raises(ConfigError, match="not YAML") as caught:
        load_config(path, ["data.path=*.jsonl"])
    assert caught.value.next_step.endswith("""'data.path="*.jsonl"'""")
    assert load_config(path, ['data.path="*.jsonl"']).data.path == "*.jsonl"


def test_a_stage_without_its_number_is_named(path: Path) -> None:
    path.write_text(MINIMAL + "  brevity: {task: complete}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.where == f"stages.brevity.number in {path}"


def test_rows_that_no_stage_reads_are_no_override(path: Path) -> None:
    for source, override in (  # read by a stage
        (path, "data.rows=[0,9]"),
        ("gsm8k", "data.path=x.jsonl"),
        ("paper", "data.columns.rationale=teacher_cot"),
    ):
        require_read_rows(load_config(source, [override]), [override])
    with pytest.raises(ConfigError, match="no stage reads") as caught:
        require_read_rows(load_config("sandbox", ["data.rows=[0,9]"]), ["data.rows=[0,9]"])
    assert "stages.brevity.data.rows=[0,9]" in caught.value.next_step


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="sandbox"):
        load_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="YAML") as caught:
        load_config(broken)
    assert caught.value.where.endswith("broken.yaml line 2, column 1")
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError):
        load_config(listed)


def test_two_stages_of_one_number_are_refused(path: Path) -> None:
    path.write_text(MINIMAL + "  brevity: {number: 1, task: complete}\n")
    with pytest.raises(ConfigError, match="different numbers"):
        load_config(path)


@pytest.mark.parametrize("name", ["Brevity", "2nd", "a stage", "a/../b", "x" * 64])
def test_a_stage_that_no_record_could_name_is_refused(path: Path, name: str) -> None:
    path.write_text(MINIMAL + f"  {name}: {{number: 2, task: complete}}\n")
    with pytest.raises(ConfigError, match="not a stage name") as caught:
        load_config(path)
    assert caught.value.found == name
    StageId(number=MAX_STAGE, name="a_stage-2")
    for number in (0, MAX_STAGE + 1):
        with pytest.raises(ConfigError, match="different numbers"):
            load_config("sandbox", [f"stages.remedy.number={number}"])


@pytest.mark.parametrize(
    "override",
    ["seed=-1", "seed=4294967296", "threads=0", "eval.limit=0", "eval.batch_size=0", "eval.max_new_tokens=-1",
     "eval.temperature=-1", "eval.temperature=.nan"],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_by_its_key(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", [override])
    assert caught.value.where == override.partition("=")[0]
    assert caught.value.expected


def test_what_an_adapter_of_a_stage_leaves_open_is_the_curriculums() -> None:
    config = load_config("paper", ["stages.brevity.adapter.r=8", "adapter.alpha=64"])
    assert config.stages["brevity"].adapter == replace(config.adapter, r=8)
    assert config.adapter.alpha == 64
    assert config.adapter.targets != LINEAR_MODULES
    assert build_config(config_dict(config)) == config


def test_the_saved_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    told = load_config(path, ["base.licence='\\${data.path}'", "eval.data.path=${data.path}"])
    assert (told.base.licence, told.eval.data.path) == ("${data.path}", "sandbox")
    for config in (told, build_config(config_dict(told))):
        save_config(config, tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == told


def test_a_mistyped_stage_is_no_new_stage() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", ["stages.brevty.trainer.max_steps=1"])
    assert caught.value.next_step == "did you mean brevity?"
    assert "extra" in load_config("sandbox", ["stages.extra.number=4", "stages.extra.task=rewrite"]).stages
