"""Make the sandbox base: tokenizer, weights and their description, from a seed.

Run as `python -m plyfold.stages.sandbox.make_base --out DIR`. Two runs on one machine agree up to the order of
floating-point sums; the weights in `base/` are the ones every figure belongs to.
"""

import argparse
import sys
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


def make_base(out: Path, diet: Diet, schedule: Schedule) -> None:
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

    def report(step: int, loss: float, seconds: float) -> None:
        print(f"step {step}/{schedule.num_steps}  loss {loss:.4f}  {seconds:.0f} s", file=sys.stderr, flush=True)

    train(model, tokenizer, diet, schedule, on_progress=report, on_checkpoint=lambda _: save(model, tokenizer, out))
    save(model, tokenizer, out)


def main() -> None:
    """Parse the command line and make the base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=Schedule.num_steps, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and diet")
    args = parser.parse_args()
    schedule = replace(Schedule(), num_steps=args.steps, seed=args.seed)
    make_base(args.out, Diet(), schedule)


if __name__ == "__main__":
    main()
