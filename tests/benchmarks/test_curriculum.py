"""benchmarks/curriculum.py from nothing to its files, on a tiny random base: a seed, two steps, eight problems."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
CONFIG = """
curriculum: tiny
base: {{repo: acme/tiny-qwen2, revision: auto, path: {base}, compute_dtype: float32}}
adapter: {{r: 4, alpha: 8}}
data: {{path: sandbox}}
eval: {{data: {{path: sandbox, split: test, rows: [60, 70]}}, max_new_tokens: 8, batch_size: 8}}
stages:
  structure:
    number: 1
    task: reconstruct
    data: {{path: sandbox, rows: [0, 20]}}
    trainer: {{per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 2}}
    gate: accuracy >= 0.9
  brevity:
    number: 2
    task: complete
    data: {{path: sandbox, rows: [20, 40]}}
    masking: {{mode: scattered}}
    unaided_share: 0.5
    trainer:
      per_device_train_batch_size: 8
      num_generations: 4
      max_completion_length: 8
      learning_rate: 1.0e-3
      max_steps: 2
"""


def _bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/curriculum.py", *map(str, arguments)],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_from_nothing_to_the_table_and_nothing_twice(tiny_base: Any, tmp_path: Path) -> None:
    config, out, results = tmp_path / "tiny.yaml", tmp_path / "out", tmp_path / "results"
    config.write_text(CONFIG.format(base=tiny_base()))
    run = ("run", "--out", out, "--config", config, "--seeds", "0", "--problems", "8", "--jobs", "2",
           "--sft-rates", "1", "--grpo-rates", "1", "--rows", "sft,grpo", "--more", "3")  # fmt: skip
    done = _bench(*run)
    assert done.returncode == 0, done.stderr
    assert "train full, seed 0: trained stage 1, 2" in done.stderr

    results.mkdir()
    aside = config.rename(
        tmp_path / "aside.yaml"
    )  # what was run is what is reported, whatever the configuration is by then
    done = _bench("report", out, "--results", results, "--hardware", "here", "--note", "A sentence on the diet.")
    assert done.returncode == 0, done.stderr
    aside.rename(config)
    (found,) = results.glob("*-curriculum-here.json")
    table = found.with_suffix(".md").read_text()
    assert "A sentence on the diet." in table
    assert str(tmp_path) not in table + found.read_text()  # no machine's paths
    assert "run --out out --config tiny.yaml" in table
    made = json.loads(found.read_text())
    assert {"base", "final", "seeds", "n", "command", "environment", "rows", "cost", "goals"} <= made.keys()
    for name in ("base", "final"):
        assert 0 <= made[name]["accuracy"] <= 1
        assert 1 <= made[name]["tokens"] <= 8
        assert 1 <= made[name]["sampled"]["tokens"] <= 8
    rows = {row["key"]: row for row in made["rows"]}
    assert [key for key, row in rows.items() if row["table"] == "main"] == ["base", "sft", "grpo", "1", "1+2"]
    assert 0.7 < rows["sft"]["compute"]["share_of_full"] < 1.4  # few steps, so rounding shows
    (longer,) = (row for row in rows.values() if row["table"] == "ablation" and "3 x the compute" in row["label"])
    assert 2.1 < longer["compute"]["share_of_full"] / rows["grpo"]["compute"]["share_of_full"] < 3.9
    costs = {(cost["trained_as"], cost["stage"]): cost for cost in made["cost"]}
    assert set(costs) == {
        ("full", 1), ("full", 2), (rows["sft"]["trained_as"], 1), (rows["grpo"]["trained_as"], 2),
        (longer["trained_as"], 2),
    }  # fmt: skip
    assert all(cost["peak_bytes"] > 3e8 and cost["s_a_step"] > 0 for cost in costs.values())
    assert 0 < costs["full", 2]["rollout_share"] < 1
    assert [goal["mode"] for goal in made["goals"]] == ["greedy"] * 4 + ["sampled"] * 4
    assert made["goals"][0]["holds"] is False  # a random base and two steps

    again = _bench(*run)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("up to date") >= 4
    assert "trained stage" not in again.stderr
    assert len(list((out / "seed-0" / "runs" / "full" / "eval").iterdir())) == 2
