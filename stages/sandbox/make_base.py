"""Make the sandbox base: tokenizer, weights and their description, from a seed.

Run as `python -m plyfold.stages.sandbox.make_base --out DIR`. Two runs on one machine agree up to the order of
floating-point sums; the weights in `base/` are the ones every figure belongs to.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from .diet import Diet, serve
from .pretrain import Schedule, new_model, train
from .tokenizer import save_tokenizer, train_tokenizer

VOCAB_SIZE = 640
_PROMPT_WORDS = "Shuffled steps:\n- [MASK]\n- Step\nPartial solution:\nStep 2: [MASK]\nReference:\nSolution:\n"
"""Words of the stages' prompts; they are not in the diet, and would otherwise be spelt in single bytes."""


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write bf16 weights, config, generation config and tokenizer."""
    import copy

    import torch

    half = copy.deepcopy(model).to(torch.bfloat16)
    half.config.dtype = torch.bfloat16
    half.save_pretrained(out)
    save_tokenizer(tokenizer, out)


def second_course(out: Path, diet: Diet, schedule: Schedule) -> None:
    """Go on from the saved weights of the first course, as they were rounded to bf16.

    Args:
        out: Folder of the first course's base; overwritten.
        diet: Shares of the text, with drafts.
        schedule: Length and rates; its seed must differ from the first course's, so that the texts do.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    train(model, tokenizer, diet, schedule, on_progress=_reporter(schedule))
    save(model, tokenizer, out)


def _reporter(schedule: Schedule) -> Callable[[int, float, float], None]:
    def report(step: int, loss: float, seconds: float) -> None:
        print(f"step {step}/{schedule.num_steps}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True)

    return report


def first_course(out: Path, diet: Diet, schedule: Schedule) -> None:
    """Train tokenizer and model, and save them.

    Args:
        out: Folder to write; checkpoints overwrite one another there.
        diet: Shares of the pretraining text.
        schedule: Length and rates of the training.
    """
    texts = [text.prompt + text.completion for text in islice(serve(diet, schedule.seed + 1), 6000)]
    tokenizer = train_tokenizer(texts + [_PROMPT_WORDS] * 400, VOCAB_SIZE)
    model = new_model(len(tokenizer), tokenizer.eos_token_id, schedule.seed)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(tokenizer)} tokens, {num_parameters / 1e6:.2f} M parameters", file=sys.stderr, flush=True)

    report = _reporter(schedule)
    train(model, tokenizer, diet, schedule, on_progress=report, on_checkpoint=lambda _: save(model, tokenizer, out))
    save(model, tokenizer, out)


def main() -> None:
    """Parse the command line and make the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=Schedule.num_steps, help="optimiser steps")
    parser.add_argument("--second-steps", type=int, default=300, help="optimiser steps of the second course")
    parser.add_argument("--only-second", action="store_true", help="go on from the first course already in --out")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and diet")
    args = parser.parse_args()
    diet, schedule = Diet(), replace(Schedule(), num_steps=args.steps, seed=args.seed)
    if not args.only_second:
        first_course(args.out, diet, schedule)
    second = Schedule(num_steps=args.second_steps, muon_lr=0.01, adam_lr=1.5e-3, decay_share=1.0, seed=args.seed + 1000)
    second_course(args.out, replace(diet, drafts=0.5), second)


if __name__ == "__main__":
    main()
