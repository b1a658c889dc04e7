"""Make the sandbox base: tokenizer, weights and their description, from a seed.

Run as `python -m plyfold.sandbox.make_base --out DIR`. Two runs on one machine agree up to the order of
floating-point sums; the weights in `base/` are the ones every figure belongs to.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from .diet import Diet, serve
from .pretrain import Schedule, new_model, pretrain
from .tokenizer import save_tokenizer, train_tokenizer

VOCAB_SIZE = 640


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write bf16 weights, config, generation config and tokenizer."""
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(out)
    save_tokenizer(tokenizer, out)


COURSES = (
    (Diet(), Schedule()),
    (Diet(cued=0.4), Schedule(num_steps=500, muon_lr=0.012, adam_lr=1.5e-3, decay_share=0.8, seed=1000)),
    (Diet(concise=0.03), Schedule(num_steps=150, muon_lr=0.012, adam_lr=1.5e-3, decay_share=0.8, seed=2000)),
)
"""What is read, and how long; every course goes on from the weights as the one before has saved them.

The second adds what the base can do when it is asked to: on a base of the first course alone 40 supervised steps
taught little and rewards added little, in one trial each. The third leaves both skills out of use: without it rewards
alone find careful reading and the short style by themselves, and a curriculum has nothing to give
(benchmarks/LOG.md)."""


def make_base(out: Path, courses: Sequence[tuple[Diet, Schedule]]) -> None:
    """Train tokenizer and model, and save them.

    Args:
        out: Folder to write; checkpoints overwrite one another there.
        courses: Shares of the pretraining text, and length and rates of the training on it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    diet, schedule = courses[0]
    texts = [text.prompt + text.completion for text in islice(serve(diet, schedule.seed + 1), 6000)]
    tokenizer = train_tokenizer(texts, VOCAB_SIZE)
    model = new_model(len(tokenizer), tokenizer.eos_token_id, schedule.seed)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(tokenizer)} tokens, {num_parameters / 1e6:.2f} M parameters", file=sys.stderr, flush=True)
    for number, (diet, schedule) in enumerate(courses, start=1):
        if number > 1:
            tokenizer = AutoTokenizer.from_pretrained(out)
            model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        pretrain(model, tokenizer, diet, schedule, on_progress=partial(_report, number, schedule.num_steps))
        save(model, tokenizer, out)


def _report(course: int, num_steps: int, step: int, loss: float, seconds: float) -> None:
    print(f"course {course}  step {step}/{num_steps}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line and make the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="optimiser steps of a course, at most")
    args = parser.parse_args()
    steps = args.steps or max(schedule.num_steps for _, schedule in COURSES)
    make_base(args.out, [(diet, replace(schedule, num_steps=min(steps, schedule.num_steps))) for diet, schedule in
                         COURSES])  # fmt: skip


if __name__ == "__main__":
    main()
