"""The results of rollout_sync.py as a page of markdown."""

from __future__ import annotations

from typing import Any

WAYS = {
    "plyfold": "plyfold: the adapter alone, loaded by vLLM",
    "trl_nf4": "TRL's merged sync, NF4 base (merge, every tensor, unmerge)",
    "trl_plain": "TRL's merged sync, base not quantised",
}


def render(results: dict[str, Any]) -> str:
    """Every part that has been measured."""
    about = results["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    load = f" (load {about['load']:.1f})" if "load" in about else ""
    lines = [
        "# Bringing a learnt adapter to vLLM: the adapter alone against TRL's merged sync",
        "",
        f"{about['date']}; {about['cores']} cores{load}, "
        f"{about['threads']} torch thread(s), {about['machine']}, no GPU; {versions}.",
        "",
        f"    {about['command']}",
        "",
        "Prior of rank 32 and adapter of rank 16 on all linear modules. Seconds are medians of "
        f"{about['rounds']} rounds in which the ways",
        "take turns; only their ratios mean something, and a GPU merges faster than this CPU.",
        "MB are 10^6 bytes.",
        "",
        "TRL's side is its own `VLLMGeneration._iter_named_params`. vLLM's CPU build packs its weights and cannot take",
        "them again, so TRL's receiving end is a plain copy into a buffer: less than what vLLM does. plyfold's side is",
        "whole: compose in memory, write, vLLM reads and loads, the version before is let go.",
    ]
    lines += ["", about["note"]] if "note" in about else []
    for part, section in (("sync", _sync), ("drift", _drift)):
        if part in results:
            lines += ["", *section(results)]
    return "\n".join(lines) + "\n"


def _sync(results: dict[str, Any]) -> list[str]:
    lines = ["## Bytes and seconds of one sync", ""]
    for name, run in results["sync"].items():
        what = "the sandbox's base" if name == "sandbox" else "Qwen2.5-3B's shape, random weights"
        lines += [
            f"{what}, {run['layers']} layers, {run['dtype']}:",
            "",
            "| | MB | x | s | x | fastest to slowest, s |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        ours_bytes, ours_s = run["bytes"]["plyfold"], run["seconds"]["plyfold"]
        for way, label in WAYS.items():
            size, seconds = run["bytes"][way], run["seconds"][way]
            every = run["seconds_all"][way]
            lines.append(f"| {label} | {size / 1e6:.1f} | {size / ours_bytes:.1f} | {seconds:.3f} "
                         f"| {seconds / ours_s:.1f} | {min(every):.3f} to {max(every):.3f} |")  # fmt: skip
        lines += [
            "",
            f"The 4-bit base is {'bit-identical' if run['base_bit_identical_after_sync'] else 'NOT the same'} after "
            f"plyfold's syncs. Of the {run['trl_nf4_tensors']} tensors that TRL streams from the NF4 base, "
            f"{run['trl_nf4_tensors_no_model_takes']}",
            "are packed uint8 of another shape than any parameter of the model.",
            "",
        ]
    full = results["full_shape"]
    merged = full["merged_bytes"]
    lines += [
        "Bytes at Qwen2.5-3B's whole shape (36 layers, bfloat16), computed from the shapes and not measured:",
        "",
        "| | MB | share of the merged sync |",
        "|---|---:|---:|",
        *(f"| adapter alone, {name} of rank 16 | {size / 1e6:.1f} | {size / merged:.1%} |"
          for name, size in full["adapter_bytes"].items()),
        f"| merged: every tensor of the base | {merged / 1e6:.0f} | |",
    ]  # fmt: skip
    return lines


def _drift(results: dict[str, Any]) -> list[str]:
    lines = [
        "## What merging does to a 4-bit base",
        "",
        "`merge_adapter` and `unmerge_adapter`, which TRL's sync does once a step; |W' - W| / |W| over all modules.",
        "The size of what was learnt, |dW| / |W|, stands beside it.",
        "",
    ]
    prior = f"prior of {results['about']['prior_strength']:.1%}"
    for name, runs in results["drift"].items():
        cycles = list(runs[0]["cycles"])
        lines += [
            f"{'the sandbox' if name == 'sandbox' else 'Qwen2.5-3B shape'}, {prior}:",
            "",
            f"| size of the adapter | {' | '.join(f'{cycle} cycle(s)' for cycle in cycles)} |",
            f"|---|{'---:|' * len(cycles)}",
        ]
        for run in runs:
            shares = [format(run["cycles"][cycle], ".1%") for cycle in cycles]
            lines.append(f"| {run['strength']:.1%} | {' | '.join(shares)} |")
        lines.append("")
    return [*lines, "With plyfold's sync nothing is merged, and the base stays as it was, bit for bit."]
