"""Does the composed adapter answer as the stacked stages do, in Hugging Face and in vLLM?

Takes the registry that `plyfold quickstart` left and compares, on held-out problems,
  1. logits of the composed adapter with those of all stages active side by side in PEFT (teacher-forced), both also
     with the same stack in float64, so that rounding can be told from error, and
  2. greedy tokens of the composed adapter in vLLM with those of the stacked stages in Hugging Face.
Logits that differ by rounding only can still flip a greedy token where two candidates tie within it; every such flip is
listed with the stacked model's margin between the two candidates.

    python benchmarks/agreement.py --limit 500
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from plyfold.adapters.base.load import load_tokenizer, load_twin
from plyfold.core.config import build_config
from plyfold.data.dataset import load_problems
from plyfold.engines.vllm import VllmEngine
from plyfold.evaluation.protocols import protocol
from plyfold.registry.store import Store, find_store
from plyfold.variants import Variant, materialise, twin_of

BATCH = 50


def stacked_model(twin: Path, folders: list[Path]) -> Any:
    """The twin with every stage's own adapter active, as it was trained."""
    from peft import PeftModel

    names = [f"stage{index}" for index in range(len(folders))]
    model = PeftModel.from_pretrained(load_twin(twin), str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval()


def composed_model(twin: Path, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_twin(twin), str(folder)).eval()


def greedy(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """Greedy token ids up to and with the end token."""
    end = tokenizer.eos_token_id
    tokenizer.padding_side = "left"
    rows: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out_BT = model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=end, eos_token_id=end
            )
        for row in out_BT[:, batch["input_ids"].shape[1] :].tolist():
            rows.append(row[: row.index(end) + 1] if end in row else row)
    return rows


def logit_errors(stacked: Any, composed: Any, exact: Any, rows: list[list[int]]) -> dict[str, float]:
    """Largest differences over all positions of teacher-forced rows; the float64 model tells rounding from error."""
    largest = dict.fromkeys(("composed - stacked", "stacked - float64", "composed - float64", "logit"), 0.0)
    with torch.inference_mode():
        for row in rows:
            ids_BT = torch.tensor([row])
            one_TV, other_TV, true_TV = (model(input_ids=ids_BT).logits[0] for model in (stacked, composed, exact))
            for name, difference_TV in (
                ("composed - stacked", other_TV - one_TV),
                ("stacked - float64", one_TV - true_TV),
                ("composed - float64", other_TV - true_TV),
                ("logit", true_TV),
            ):
                largest[name] = max(largest[name], float(difference_TV.abs().max()))
    return largest


def flips(stacked: Any, prompts: list[list[int]], one: list[list[int]], other: list[list[int]]) -> list[dict[str, Any]]:
    """First differing token of every row that differs, with the stacked model's margin between the two."""
    found = []
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        if a == b:
            continue
        at = next((place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            found.append({"problem": index, "position": min(len(a), len(b)), "margin": None})
            continue
        with torch.inference_mode():
            logits_V = stacked(input_ids=torch.tensor([prompts[index] + a[:at]])).logits[0, -1]
        found.append({"problem": index, "position": at, "margin": float((logits_V[a[at]] - logits_V[b[at]]).abs())})
    return found


def vllm_tokens(engine: VllmEngine, variant: str, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    outputs = engine._run([variant], prompts, [engine._sampling(max_new_tokens)] * len(prompts), "vllm")[variant]
    return [list(output.outputs[0].token_ids) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    store: Store = find_store(arguments.registry)
    curriculum = store.default_curriculum(None)
    numbers = tuple(store.stages(curriculum))
    variant = Variant(curriculum=curriculum, stages=numbers)
    made, twin = materialise(store, variant), twin_of(store, [variant])
    assert made.path is not None
    settings = build_config(made.entries[-1].record.recipe.config, []).eval
    asked = protocol(settings.protocol)
    prompts = [asked.prompt(problem.question) for problem in load_problems(settings.data, arguments.limit)]
    tokenizer = load_tokenizer(twin)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]

    stacked = stacked_model(twin, [entry.path for entry in made.entries])
    composed = composed_model(twin, made.path)
    exact = stacked_model(twin, [entry.path for entry in made.entries]).double()
    reference = greedy(stacked, tokenizer, prompts, settings.max_new_tokens)
    rows = [prompt + row for prompt, row in zip(ids, reference, strict=True)]
    hf = greedy(composed, tokenizer, prompts, settings.max_new_tokens)
    with VllmEngine(twin, {"composed": made.path}, max_new_tokens=settings.max_new_tokens) as engine:
        served = vllm_tokens(engine, "composed", prompts, settings.max_new_tokens)
    report = {
        "variant": variant.alias,
        "problems": len(prompts),
        "largest logit difference (hf, float32)": logit_errors(stacked, composed, exact, rows),
        "greedy hf composed = hf stacked": sum(a == b for a, b in zip(hf, reference, strict=True)),
        "greedy vllm composed = hf stacked": sum(a == b for a, b in zip(served, reference, strict=True)),
        "flips vllm": flips(stacked, ids, reference, served),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
