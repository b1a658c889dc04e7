"""The tiny curriculum: three stages of four steps each on the tiny random base, seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

STAGES = """
  structure:
    number: 1
    task: reconstruct
    masking: {mode: one, probability: 0.7}
    trainer: {per_device_train_batch_size: 4, learning_rate: 1.0e-3, max_steps: 4, save_steps: 2}
  brevity:
    number: 2
    task: complete
    masking: {mode: scattered}
    unaided_share: 0.5
    trainer: &grpo
      per_device_train_batch_size: 4
      gradient_accumulation_steps: 2
      num_generations: 4
      max_completion_length: 8
      learning_rate: 1.0e-3
      max_steps: 4
      save_steps: 2
  remedy:
    number: 3
    task: rewrite
    unaided_share: 0.5
    mining: {samples: 2, problems: 12, max_new_tokens: 8, wrong_share: 0, unaided_samples: 2}
    trainer: *grpo
"""


def tiny_config(base: Path, stages: str = STAGES, *, rows: int = 40, scored: int = 40, evaluation: str = "") -> str:
    """A config's text: few rows of the sandbox in one thread.

    Args:
        base: Folder of the base.
        stages: What stands below `stages:`, as YAML.
        rows: Of the train split.
        scored: Rows of the test split that variants are scored on.
        evaluation: More fields of `eval`, as YAML between braces.
    """
    return f"""
curriculum: tiny
base: {{repo: acme/tiny-qwen2, revision: auto, path: {base}, compute_dtype: float32}}
adapter: {{r: 4, alpha: 8}}
data: {{path: sandbox, rows: [0, {rows}]}}
eval: {{data: {{path: sandbox, split: test, rows: [0, {scored}]}}, {evaluation}}}
threads: 1
stages:
{stages}"""
