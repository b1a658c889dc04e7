"""The results of merge.py as a page of markdown."""

from __future__ import annotations

from typing import Any

MEMORY_GB_S = 10.0
"""Bytes one core moves through memory here; for physical limits in round numbers."""


def render(results: dict[str, Any]) -> str:
    """Every part that has been measured, with its command, its peer and its physical limit."""
    about = results["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Merging: speed, memory and accuracy against PEFT and against a plain copy",
        "",
        f"{about['date']}; {about['cores']} cores, {about['machine']}, no GPU; {versions}.",
        "",
        f"    {about['command']}",
        "",
        "Qwen2.5-3B's shape (36 layers, 252 modules, bf16, 6.2 GB), three rank-16 adapters in float32, random",
        "weights. Every figure is of a whole process, from start to exit, imports included; GB are 10^9 bytes,",
        "resident at peak.",
        "Ratios are of runs on the same files, one after another.",
    ]
    for part, section in (
        ("compose", _compose),
        ("svd", _svd),
        ("fold", _fold),
        ("accuracy", _accuracy),
        ("growth", _growth),
    ):
        if part in results:
            lines += ["", *section(results[part])]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _timed(name: str, run: dict[str, Any], ours: dict[str, Any] | None = None) -> str:
    ratio = "" if ours is None else f"{run['wall_s'] / ours['wall_s']:.2f}"
    memory = "" if ours is None else f"{run['peak_gb'] / ours['peak_gb']:.2f}"
    return _row(name, f"{run['wall_s']:.2f}", f"{run['cpu_s']:.1f}", f"{run['peak_gb']:.2f}", ratio, memory)


def _head() -> list[str]:
    return [_row("", "wall s", "CPU s", "peak GB", "time / plyfold", "memory / plyfold"), "|---|---|---|---|---|---|"]


def _phases(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run["phases_s"].items())


def _compose(part: dict[str, Any]) -> list[str]:
    ours, theirs = part["plyfold"], part["peft_cat"]
    moved = part["bytes_read_and_written"] / 1e9
    return [
        "## Exact composition of three adapters",
        "",
        *_head(),
        _timed("`plyfold merge A B C`", ours),
        _timed('PEFT `combination_type="cat"`', theirs, ours),
        _timed("`python -c 'import torch'`, for scale", part["import_torch"], ours),
        "",
        f"Target: 3 s, 0.6 GB. PEFT's phases: {_phases(theirs)}.",
        f"Physical limit: {moved:.2f} GB read and written, {moved / MEMORY_GB_S:.2f} s at {MEMORY_GB_S:.0f} GB/s; no "
        "base is needed. The rest is digests, certificate, conflicts and start-up.",
    ]


def _svd(part: dict[str, Any]) -> list[str]:
    ours, extrapolated = part["plyfold"], part["peft_svd_extrapolated_s"]
    optimum = part["against_eckart_young"]
    rows = [
        _row(f'PEFT `combination_type="{name}"`, one layer x 36', f"{seconds:.0f}", f"{seconds / ours['wall_s']:.0f} x")
        for name, seconds in extrapolated.items()
    ]
    return [
        "## Cut to rank 16 over all 252 modules",
        "",
        _row("", "wall s", "time / plyfold"),
        "|---|---|---|",
        _row("`plyfold merge A B C --rank 16`", f"{ours['wall_s']:.2f}", ""),
        *rows,
        "",
        f"Target: 30 s, over 50 times. Peak {ours['peak_gb']:.2f} GB. Against the dense optimum (Eckart-Young, "
        f"float64) on {optimum['modules']} modules: {optimum['largest_relative_excess']:+.1e} relative, target 1e-6.",
    ]


def _fold(part: dict[str, Any]) -> list[str]:
    ours, theirs, copy = part["plyfold"], part["peft_merge_and_unload"], part["copy_and_fsync"]
    ratios = [one / other for one, other in zip(ours["wall_s_all"], copy["wall_s_all"], strict=True)]
    return [
        "## Fold of three adapters into the base",
        "",
        *_head(),
        _timed("`plyfold merge A B C --into model`", ours),
        _timed("PEFT `merge_and_unload` x 3, `save_pretrained`", theirs, ours),
        _timed("`cp -r` of the base, fsync", copy, ours),
        "",
        f"Targets: at least 6 times PEFT: {theirs['wall_s'] / ours['wall_s']:.1f}; at most 1.5 times the copy: "
        f"{ours['wall_s'] / copy['wall_s']:.2f} (medians; {min(ratios):.2f} to {max(ratios):.2f} over the five pairs, "
        f"as the copy's time changes); 0.5 GB: {ours['peak_gb']:.2f}.",
        f"PEFT's phases: {_phases(theirs)}.",
        f"Physical limits: {part['bytes_of_base'] / 1e9:.2f} GB read and as much written and flushed, which is the "
        f"copy's row; {part['flop'] / 1e9:.0f} GFLOP in float32.",
        "The fold's own floor here: start-up 1 s, certificate and rounding estimate 1 s, and the products. Against a",
        "copy that finds free pages waiting it takes more than 1.5 times as long; against one that does not, less",
        "(LOG.md).",
        f"All runs of the fold: {', '.join(f'{each:.2f}' for each in ours['wall_s_all'])} s; of the copy, in turn: "
        f"{', '.join(f'{each:.2f}' for each in copy['wall_s_all'])} s.",
    ]


def _accuracy(part: dict[str, Any]) -> list[str]:
    return [
        "## Accuracy of the fold",
        "",
        "|(result - W) - D| / |D| against float64, two layers, bf16:",
        "",
        _row("plyfold, one rounding", f"{part['plyfold']:.4f}"),
        "|---|---|",
        _row("PEFT, one rounding per adapter", f"{part['peft']:.4f}"),
    ]


def _growth(part: dict[str, Any]) -> list[str]:
    numbers = [
        _row(number, f"{run['wall_s']:.2f}", f"{run['peak_gb']:.2f}")
        for number, run in sorted(part["adapters_at_3B"].items(), key=lambda item: int(item[0]))
    ]
    sizes = [
        _row(size, *(f"{kinds[kind][key]:.2f}" for kind in ("compose", "svd", "fold") for key in ("wall_s", "peak_gb")))
        for size, kinds in part["three_adapters"].items()
    ]
    return [
        "## Growth",
        "",
        "Exact composition at 3B's shape:",
        "",
        _row("adapters", "wall s", "peak GB"),
        "|---|---|---|",
        *numbers,
        "",
        "Three adapters at each shape (bf16 base: 1.0, 6.2, 15.2 GB):",
        "",
        _row("shape", "compose s", "GB", "rank 16 s", "GB", "fold s", "GB"),
        "|---|---|---|---|---|---|---|",
        *sizes,
    ]
