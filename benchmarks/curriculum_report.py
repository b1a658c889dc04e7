"""The results of curriculum.py as a page of markdown."""

from __future__ import annotations

from typing import Any


def render(results: dict[str, Any], notes: list[str]) -> str:
    """The page."""
    environment, settings = results["environment"], results["settings"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "peft", "trl",
                                                                    "bitsandbytes"))  # fmt: skip
    code = results["code"]
    commit = f" ({code['git'][:12]}{', with changes' if code['dirty'] else ''})" if code.get("git") else ""
    final = results.get("final", {}).get("variant", "")
    lines = [
        "# The curriculum against its base, fine-tuning, GRPO alone and itself without each stage",
        "",
        f"{results['date']}; {results['cores']} cores, {environment['machine']}, {environment['device']}; "
        f"{settings['jobs']} rows at a time, threads each: {settings['threads'] or 'all'}; plyfold {code['version']}"
        f"{commit}, {versions}.",
        "",
        f"    {results['command']}",
        "",
        *_protocol(results),
        *(line for note in notes for line in ("", note)),
    ]
    if len(settings["code"]) > 1:
        lines += ["", f"The code changed while this was measured: {len(settings['code'])} versions of it made parts."]
    if results["failed"]:
        lines += ["", "Not measured:", ""]
        lines += [f"* {name}: {reason.splitlines()[-1]}" for name, reason in results["failed"].items()]
    for title, table in (("Rows", "main"), ("Composed without training", "composed"), ("Ablations", "ablation"),
                         ("Learning rates of the baselines", "sweep")):  # fmt: skip
        rows = [row for row in results["rows"] if row["table"] == table]
        if rows:
            lines += [
                "",
                f"## {title}",
                "",
                *_TABLE_NOTES.get(table, []),
                *_table(rows, final, sampled=table == "main"),
            ]
    if results["goals"]:
        lines += ["", "## Goals", ""]
        lines += [f"* {'Holds' if goal['holds'] else 'DOES NOT HOLD'}, {goal['mode']}: {goal['claim']}: "
                  f"{goal['figure']}." for goal in results["goals"]]  # fmt: skip
    if results["choices"]:
        lines += ["", "## What each stage adds", "", "The whole curriculum minus the curriculum trained without the "
                  "stage; a stage helps where the interval is above 0.", ""]  # fmt: skip
        lines += [_choice(choice) for choice in results["choices"]]
    if results["recipes"]:
        lines += ["", "## How each was trained", "", "Under the first seed; stages that are another row's are not "
                  "repeated. Prompts are bare as said, and wherever a problem has no rationale; supervised training "
                  "reads the rows with one.", "", *_recipes(results["recipes"])]  # fmt: skip
    if results["cost"]:
        lines += ["", "## Cost", "", *_cost_table(results["cost"])]
    return "\n".join(lines)


_TABLE_NOTES = {
    "composed": ["Subsets of the whole curriculum's adapters, summed: no stage was trained for this company.", ""],
    "sweep": ["Under the first seed, on the very problems of the table, which favours the baselines: the most accurate "
              "rate is the row above, under all seeds.", ""],
}  # fmt: skip


def _protocol(results: dict[str, Any]) -> list[str]:
    protocol, engine = results.get("protocol", {}), results.get("engine", {})
    asked = [f"{results['n']} held-out problems, seeds {', '.join(map(str, results['seeds']))}, each row trained anew "
             f"under each. Protocol {protocol.get('name')}: the bare question; greedy, at most "
             f"{engine.get('max_new_tokens')} new tokens, on the dequantised NF4 base ({engine.get('engine')}, "
             f"{engine.get('dtype')})."]  # fmt: skip
    if results.get("sampling"):
        asked.append(f"Sampled: one completion a problem and seed at temperature "
                     f"{results['sampling']['temperature']:g}, top_p 1.")  # fmt: skip
    asked += [
        "Brackets are 95 % intervals: bootstrap over seeds and problems, paired where two rows are compared.",
        "",
        "Compute is counted in token-forwards (a forward pass of a token 1, backward 2 although frozen weights need no",
        "gradient of their own, a generated token or its prompt 1; padding not counted; mining included). The",
        "baselines' steps follow from it, by rule and per seed: as many as cost what the whole curriculum cost under",
        "that seed, the completions of GRPO alone taken to be as long as the curriculum's first GRPO stage's. Their",
        "trainers are those of the like stages but for the swept rate; they read the bare prompts of all rows that any",
        "stage reads. Gates are off. The last column of the tables is the compute, as a share of the curriculum's.",
    ]
    return asked


def _table(rows: list[dict[str, Any]], final: str, *, sampled: bool) -> list[str]:
    head = ["", "greedy", "of each seed", "tokens", "minus base", "length", f"{final} minus it", "length"]
    head += ["sampled", "tokens"] if sampled else []
    head += ["compute"]
    lines = [_row(*head), _row("---", *["---:"] * (len(head) - 1))]
    for row in rows:
        greedy, found = row["greedy"], row["sampled"]
        rate = f", rate {row['learning_rate']:g}" if row["table"] == "main" and row["learning_rate"] else ""
        cells = [
            f"{row['label']}{rate}",
            f"{100 * greedy['accuracy']:.1f} %",
            " ".join(f"{100 * value:.1f}" for value in greedy["accuracy_of_seeds"]),
            f"{greedy['tokens']:.1f}",
            *_difference(row["against_base"].get("greedy")),
            *_difference(row["final_against"].get("greedy")),
        ]
        if sampled:
            cells += _accuracy(found) if found else ["", ""]
        cells.append(f"{row['compute']['share_of_full']:.2f}" if row["compute"] else "0")
        lines.append(_row(*cells))
    return lines


def _difference(against: dict[str, Any] | None) -> list[str]:
    """Points of accuracy and relative length, each with its interval; empty for the row itself."""
    if not against:
        return ["", ""]
    accuracy, length = against["accuracy"], against["length"]
    return [
        f"{100 * accuracy['value']:+.1f} {interval(accuracy['ci95'], '+.1f')}",
        f"{100 * length['value']:+.1f} % {interval(length['ci95'], '+.1f')}",
    ]


def _accuracy(summary: dict[str, Any]) -> list[str]:
    return [
        f"{100 * summary['accuracy']:.1f} % {interval(summary['accuracy_ci95'], '.1f')}",
        f"{summary['tokens']:.1f}",
    ]


def _recipes(recipes: list[dict[str, Any]]) -> list[str]:
    lines = [
        _row("trained as", "stage", "task", "rows", "with rationale", "bare prompts", "steps x rows", "rate",
             "schedule", "reward"),
        _row("---", *["---:"] * 9),
    ]  # fmt: skip
    for recipe in recipes:
        lines.append(
            _row(recipe["trained_as"], recipe["stage"], recipe["task"], "-".join(map(str, recipe["rows"] or ["all"])),
                 "all" if recipe["rationales"] is None else f"the first {recipe['rationales']}",
                 f"{100 * recipe['unaided_share']:.0f} %", f"{recipe['steps']} x {recipe['batch']}",
                 recipe["learning_rate"], recipe["schedule"], recipe["reward"])
        )  # fmt: skip
    return lines


def _choice(choice: dict[str, Any]) -> str:
    said = {"more": "helps", "less": "COSTS", "even": "is not told apart"}
    parts = [
        f"{mode}: {said[choice[mode]['accuracy']]} in accuracy, {choice[mode]['figure']}"
        for mode in ("greedy", "sampled")
        if mode in choice
    ]
    return f"* Stage {choice['stage']} (against {choice['without']}): {'; '.join(parts)}."


def _cost_table(costs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Means over seeds, with the rows at a time and threads named above. Training is the time of its steps; the "
        "stage is all of it, base loading, mining and unaided measurements included; peak is the process's resident "
        "memory, libraries included.",
        "",
        _row("trained as", "stage", "steps", "s / step", "training s", "stage s", "peak GB", "rollouts",
             "10^6 token-forwards"),
        _row("---", *["---:"] * 8),
    ]  # fmt: skip
    for cost in costs:
        share = f"{100 * cost['rollout_share']:.0f} %" if "rollout_share" in cost else ""
        lines.append(
            _row(cost["trained_as"], cost["stage"], f"{cost['steps']:.0f}", f"{cost['s_a_step']:.2f}",
                 f"{cost['training_s']:.0f}", f"{cost['stage_s']:.0f}", f"{cost['peak_bytes'] / 1e9:.2f}", share,
                 f"{cost['token_forwards'] / 1e6:.2f}")
        )  # fmt: skip
    return lines


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def interval(bounds: Any, form: str) -> str:
    """A fraction's interval in percent."""
    return f"[{100 * bounds[0]:{form}}, {100 * bounds[1]:{form}}]"
