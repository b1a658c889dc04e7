"""Teacher solutions in the shapes that datasets have: steps, answer, and nothing else."""
# ruff: noqa: RUF001

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plyfold.core.config import DataConfig
from plyfold.data.answers.reader import normalise
from plyfold.data.dataset import load_rationales
from plyfold.data.rationale.answer_leaks import states_answer
from plyfold.data.rationale.parse import (
    Rationale,
    UnusableRationale,
    answer_in_step,
    parse_rationale,
    read_gold,
    render_solution,
)

GSM8K = "He sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72"
REASONER = """Thinking…
Step 1: a draft of the plan
Step 2: dropped with the thoughts. Answer: 7

Step 1: Determine the total: - Bikes cost \\$20 each.
  Thus \\[ 2 \\times 20 = \\$40 \\]
Step 2: **Add** the helmet: \\( 40 + 5 = 45 \\) **

Step 3: So the total is \\boxed{45} dollars. Answer: 45"""


def test_gsm8k_lines_become_steps_without_marks() -> None:
    rationale = parse_rationale(" How many clips? ", GSM8K, GSM8K)
    assert rationale == Rationale(
        question="How many clips?",
        steps=("He sold 48/2 = 24 clips in May.", "In all 48+24 = 72 clips."),
        answer="72",
    )
    assert render_solution(rationale) == (
        "Step 1: He sold 48/2 = 24 clips in May.\nStep 2: In all 48+24 = 72 clips.\nAnswer: 72"
    )


def test_the_last_numbered_run_counts_and_latex_survives() -> None:
    rationale = parse_rationale("q", REASONER, "45")
    assert rationale.steps == (
        "Determine the total: - Bikes cost \\$20 each. Thus \\[ 2 \\times 20 = \\$40 \\]",
        "**Add** the helmet: \\( 40 + 5 = 45 \\)",
        "So the total is 45 dollars.",
    )
    assert rationale.answer == "45"


def test_steps_may_go_on_with_the_numbers_of_the_thoughts() -> None:
    thoughts = "Thinking\u2026\nStep 1: 20+20=40\nStep 2: 40+6=46. Answer: 46 ...done thinking. Let us see:"
    for first in (1, 3):
        said = f"Step {first}: 20 a head: 20+20=40\nStep {first + 1}: 40+5=\\boxed{{45}}"
        assert parse_rationale("q", f"{thoughts}\n{said}", "45").steps == ("20 a head: 20+20=40", "40+5=45")


@pytest.mark.parametrize(
    "text",
    [
        "1. {}\n2. {}", "1) {}\n2) {}", "(1) {}\n(2) {}", "**1.** {}\n**2.** {}", "1\\. {}\n2\\. {}", "#1: {}\n#2: {}",
        "Step 1 - {}\nStep 2 - {}", "Step 1 \u2013 {}\nStep 2 \u2013 {}",
        "Step 1\n{}\nStep 2\n{}", "## Step 1\n{}\n\n## Step 2\n{}",
        "**Step 1**\n{}\n**Step 2**\n{}", "**Step 1: {}**\n**Step 2: {}**", "**Step 1:** {}\n**Step 2:** {}",
        "```\n{}\n{}\n```", "```text\n1. {}\n2. {}\n```", "<think>\n{}\n{}",
    ],
)  # fmt: skip
def test_no_number_or_fence_of_the_teachers_stays_in_a_step(text: str) -> None:
    steps = parse_rationale("q", text.format("20+20=40", "40+5=45") + "\n\nAnswer: 45", "45").steps
    assert steps == ("20+20=40", "40+5=45")


def test_numbers_that_are_no_list_stay() -> None:
    lines = ("1.5 eggs are 40", "45. That is all", "3) is next")
    assert parse_rationale("q", "\n".join(lines) + "\nAnswer: 45", "45").steps == lines
    titled = "**Step 1: Eggs**\n20+20=40\n\n**Step 2: Hens**\n40+5=45\n\nAnswer: 45"
    assert parse_rationale("q", titled, "45").steps == ("Eggs 20+20=40", "Hens 40+5=45")


def test_the_steps_of_one_paragraph_are_its_sentences() -> None:
    text = "...done thinking. Mr. Lee pays 20+20=40. Then 5 more, which is 40+5=45.\n\nAnswer: 45"
    assert parse_rationale("q", text, "45").steps == ("Mr. Lee pays 20+20=40.", "Then 5 more, which is 40+5=45.")
    for one in ("Step 1: 20+20=40. Then 40+5=45.", "Mrs. Lee pays 40+5=45."):
        with pytest.raises(UnusableRationale, match="fewer than 2 steps"):
            parse_rationale("q", f"{one}\nAnswer: 45", "45")


@pytest.mark.parametrize(
    "ending", ["Answer: 45", "**Answer:** 45", "**Final Answer:** \\boxed{45}", "The answer is 45.", "#### 45"]
)
def test_no_spelling_of_the_answer_line_stays_in_a_step(ending: str) -> None:
    rationale = parse_rationale("q", f"Step 1: 20+20=40\nStep 2: 40+5=45\n\n{ending}", "45")
    assert rationale.steps == ("20+20=40", "40+5=45")


def test_prose_about_an_answer_is_no_answer_line() -> None:
    text = "Step 1: To find the answer we add: 40+5=45\nStep 2: That answers it.\nAnswer: 45"
    assert parse_rationale("q", text, "45").steps[0] == "To find the answer we add: 40+5=45"


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("#### Food: 40+5=45", "Food: 40+5=45"),
        ("#### 45", None),
        ("The answer is found by adding 5 to 40, which gives 40+5=45", ...),
        ("The answer is not 44, since 40+5=45", ...),
        ("The answer is therefore 45", None),
        ("Final Answer: 40+5=45 eggs", "40+5=45 eggs"),
        ("**Answer:** 40 + 5 = 45", "40 + 5 = 45"),
        ("Answer: She has 45 eggs in all", None),
    ],
)
def test_a_line_about_the_answer_keeps_its_calculation(line: str, step: Any) -> None:
    for text in (f"20+20=40\n{line}\nso it is", f"Step 1: 20+20=40\nStep 2: {line}\nStep 3: so it is"):
        steps = parse_rationale("q", f"{text}\n#### 45", "45").steps
        assert steps == ("20+20=40", *([line if step is ... else step] if step else []), "so it is")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("Step 1: 20+20=40\nStep 2: 40+5=45 Answer: 45", True),
        ("Step 1: 20+20=40\nStep 2: 40+5=45 **Final Answer:** 45", True),
        ("Step 1: 20+20=40\nAnswer: 45\nStep 2: 40+5=45", True),
        ("Step 1: 20+20=40\nStep 2: 40+5=45\nStep 3: The answer is 45", True),
        ("20+20=40\n40+5=45 Answer: 45", True),
        ("Answer: 9\n</think>Step 1: 20+20=40\nStep 2: 40+5=45\n\nAnswer: 45", False),
        ("Step 1: To find the answer we add\nStep 2: 40+5=45\n**Final Answer:** 45", False),
        ("20+20=<<20+20=40>>40\n40+5=45\n#### 45", False),
        ("20+20=40\n40+5=45\n## Answer: 45", False),
        ("Step 1: 20+20=40\nStep 2: 40+5=\\boxed{45}\nAnswer: 45", True),
        ("Step 1: 20+20=40\nStep 2: 40+5=45. So the answer is 45.\n\n**Answer:** 45", True),
        ("Step 1: 20+20=\\boxed{40}\nStep 2: 40+5=45\n\n**Final Answer:** \\boxed{45}", False),
    ],
)
def test_an_answer_inside_a_step_is_told_from_an_answer_line(text: str, inside: bool) -> None:
    assert answer_in_step(text, "45") is inside
    assert not any("nswer:" in line for line in parse_rationale("q", text, "45").steps)


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        ("1+1=2\nso two\n#### 3", "2", "not the gold one"),
        ("Step 1: 1+1\nStep 2: = 2", "2", "states no answer"),
        ("only one step\n#### 2", "2", "fewer than 2 steps"),
        ("a\nb\n#### 2", "", "no gold"),
        ("<think>Answer: 41</think>\nStep 1: 20+20=40\nStep 2: 40+5=\\boxed{45}", "41", "not the gold one"),
        ("<think>Answer: 41</think>\nStep 1: 20+20=40\nStep 2: 40+1=41", "41", "states no answer"),
        ("<think>20+20=40\n40+1=41\nAnswer: 41</think>", "41", "states no answer"),
        ("a\nb\n#### 2", "#### none", "no gold"),
    ],
)
def test_unusable_rows_say_why(text: str, answer: str, reason: str) -> None:
    with pytest.raises(UnusableRationale, match=reason):
        parse_rationale("q", text, answer)


def test_a_draft_before_the_thoughts_end_is_neither_the_answer_nor_a_step() -> None:
    text = "<think>\nStep 1: 20+21\nStep 2: = 41. Answer: 41\n</think>\nStep 1: 20+20=40\nStep 2: 40+5=\\boxed{45}"
    assert parse_rationale("q", text, "45").steps == ("20+20=40", "40+5=45")


def test_equal_numbers_in_other_spellings_agree() -> None:
    assert parse_rationale("q", "a\nb\nAnswer: $1,800.00", "1800").answer == "1800"
    assert read_gold("x\n#### 1,800") == "1800"


WORKED = "He sold 48/2 = 24 clips in May.\nIn all 48+24 = 72 clips."


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (f"{WORKED}\nAnswer: 72", "72"),
        (f"{WORKED} So \\boxed{{72}}.", "72"),
        (f"{WORKED}\nThe answer is 72.", "72"),
        (WORKED, ""),  # neither 24, its first number, nor its last
        ("48/2 = 24, 48+24 = 72", ""),
        ("72 clips", "72 clips"),
        (f"{WORKED}\n**Answer:**\n72\nWell done.", "72"),
        ("So\n\\boxed{2x + 3}", "2x + 3"),  # an expression, which is counted as no number
        ("The answer is \\boxed{\\frac{\\sqrt{3}}{2}}.", "\\frac{\\sqrt{3}}{2}"),
        ("x = -3", "x = -3"),
    ],
)
def test_a_gold_answer_is_what_a_worked_solution_states_or_a_short_text(answer: str, gold: str) -> None:
    assert read_gold(answer) == gold
    if gold.startswith("72"):
        assert render_solution(parse_rationale("q", f"{WORKED}\nAnswer: 72", answer)).endswith(f"\nAnswer: {gold}")


@pytest.mark.parametrize(
    "text",
    [
        "First:\n\\[\n20+20=40\n\\]\n\nThen,\n\\[\n40+5\n=45\n\\]",
        "First:\n$$\n20+20=40\n$$\n---\nThen,\n$$ 40+5\n=45 $$",
        "First:\n\\begin{align*}\n20+20=40\n\\end{align*}\nThen,\n\\begin{align*} 40+5\n=45 \\end{align*}",
    ],
)
def test_displayed_mathematics_is_one_line_with_what_introduces_it(text: str) -> None:
    first, then = parse_rationale("q", f"{text}\nAnswer: 45", "45").steps
    assert (first.split()[0], then.split()[0]) == ("First:", "Then,")
    assert ("20+20=40" in first, "40+5 =45" in then) == (True, True)


SOLVED = "Step 1: 3 + 4 = 7\nStep 2: 16 - 7 = 9\nStep 3: 9 * 2 = 18"
STEPS = ("3 + 4 = 7", "16 - 7 = 9", "9 * 2 = 18")


@pytest.mark.parametrize(
    "ending",
    [
        "\nTherefore, the final answer is $\\boxed{18}$.",
        "\nTherefore, the answer is:\n\n$$\n\\boxed{18}\n$$",
        "\nIn conclusion, the answer is \\boxed{18} dollars.",
        ", so the answer is 18.",
        "; the answer is 18",
        "\nSo the final answer is 18.\nAnswer: 18",
        "\nSo, the final answer is:\n**18**",
        "\n\n### Final Answer\n\n**18**",
        "\n\nAnswer:\n\n- 18",
        "\n<answer>18</answer>",
        "\nAnswer: 9 eggs x $2 = $18",
        "\n#### 18 (9 eggs at $2)",
        "\nAnswer: 18<|im_end|>",
        "\nAnswer: 18\n\nQuestion: Tom has 5, buys 6?\nStep 1: 5 + 6 = 11\nStep 2: 11 - 1 = 10\nAnswer: 10",
    ],
)
def test_the_last_calculation_stays_and_its_statement_goes(ending: str) -> None:
    assert parse_rationale("Q?", SOLVED + ending, "18").steps == STEPS
    if "Step" not in ending:
        listed = SOLVED.replace("Step 1:", "1.").replace("Step 2:", "2.").replace("Step 3:", "3.")
        assert parse_rationale("Q?", listed + ending, "18").steps == STEPS


def test_a_restated_problem_before_the_solution_is_none_to_run_on_to() -> None:
    text = f"Given:\n- 16 eggs a day\n**Question:** How much?\n**Solution:**\n{SOLVED}\n**Answer: $18**"
    assert parse_rationale("Q?", text, "18").steps == STEPS


@pytest.mark.parametrize(
    "heading",
    ["N. **Step N:** ", "StepN: ", "Step N of 3: ", "Step N/3: ", "Step #N: ", "__Step N:__ ", "🔹 Step N: ",
     "\\textbf{Step N:} ", "[N] "],
)  # fmt: skip
def test_no_label_tells_the_order_of_steps(heading: str) -> None:
    text = "\n".join(heading.replace("N", str(number)) + step for number, step in enumerate(STEPS, 1))
    assert parse_rationale("Q?", f"{text}\nAnswer: 18", "18").steps == STEPS


def test_the_numbers_of_lists_in_lists_go() -> None:
    text = "1. First:\n   1. 3 + 4 = 7\n   2. 16 - 7 = 9\n2. Second:\n   1. 9 * 2 = 18\nAnswer: 18"
    assert parse_rationale("Q?", text, "18").steps == ("First:", *STEPS[:2], "Second:", STEPS[2])


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_thought|>\nOkay, 3 * 6 = 18.\n<|end_of_thought|>\n<|begin_of_solution|>\nS\n<|end_of_solution|>",
        "[THINK]Okay, 3 * 6 = 18.[/THINK]S",
        "<thought>Okay, 3 * 6 = 18.</thought>\nS",
        "Thinking…\nS",
    ],
)
def test_thoughts_and_the_marks_around_them_are_no_steps(text: str) -> None:
    solved = "\n".join(STEPS) + "\nAnswer: 18"
    assert parse_rationale("Q?", text.replace("S", solved), "18").steps == STEPS


@pytest.mark.parametrize(
    "gold", ["(3, 5)", "3 or 4", "2 hours 30 minutes", "5:30 PM", "3:2", "2x", "1.5 million", "1.5e3"]
)
def test_a_gold_answer_that_is_more_than_a_number_is_none(gold: str) -> None:
    with pytest.raises(UnusableRationale, match="no number"):
        parse_rationale("Q?", f"{SOLVED}\nAnswer: 3", gold)


@pytest.mark.parametrize(
    ("gold", "value"),
    [("12 and 1/2", "12.5"), ("18 of 20 eggs", "18"), ("18 in 2 days", "18"), ("2 pizzas 3 left", "2"),
     ("9*2=18. The answer is 18, 2 more than before.", "18"), ("The answer is 18 because 3 and 4 eggs are used.", "18"),
     ("Final Answer: 18 (from 10:30 to 11:00)", "18"), ("1,000", "1000"), ("2 hundred-dollar bills", "2"),
     ("10 a.m.", "10"), ("$2.50", "2.5")],
)  # fmt: skip
def test_a_gold_answer_with_more_to_say_is_a_number(gold: str, value: str) -> None:
    assert normalise(read_gold(gold)) == value


def test_bold_marks_stay_in_pairs() -> None:
    steps = parse_rationale("Q?", "Step 1: 3 + 4 = **7 eggs**\nStep 2: **9** * 2 = 18\n**Answer: 18**", "18").steps
    assert steps == ("3 + 4 = **7 eggs**", "**9** * 2 = 18")


def test_a_plan_with_a_last_step_that_checks_is_not_the_solution() -> None:
    plan = "Plan:\nStep 1: Find the eggs.\nStep 2: Multiply by the price.\nStep 3: Check the result."
    assert parse_rationale("Q?", f"{plan}\n\n{SOLVED}\nAnswer: 18", "18").steps == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["Step 1\n" * 4000, "So the answer is 18. " * 5000, "Die Antwort ist 18. " * 5000],
    ids=["steps", "en", "de"],
)
def test_pages_of_headings_and_of_statements_are_read_once(text: str) -> None:
    start_s = time.process_time()
    with pytest.raises(UnusableRationale):
        parse_rationale("Q?", f"{text}Answer: 18", "18")
    assert time.process_time() - start_s < 5.0  # read anew from each of them, it takes a minute


@pytest.mark.parametrize(
    "text", ["The answer is $\\boxed{18}$ since 9 * 2 = 18.", "So the final answer is $\\boxed{9 * 2 = 18}$."]
)
def test_no_half_of_a_box_is_left(text: str) -> None:
    last = parse_rationale("Q?", f"Step 1: 3 + 4 = 7\nStep 2: 16 - 7 = 9\n{text}", "18").steps[-1]
    assert last.count("{") == last.count("}")
    assert last.count("$") in (0, 2)
    assert "9 * 2 = 18" in last


def test_a_verification_before_the_answer_is_not_the_solution() -> None:
    text = f"{SOLVED}\n\nLet's verify:\nStep 1: 18 / 2 = 9\nStep 2: 9 + 7 = 16\n\nAnswer: 18"
    assert parse_rationale("Q?", text, "18").steps == STEPS


def test_a_verification_is_not_the_solution() -> None:
    steps = "Step 1: 20+20=40\nStep 2: 40+5=45"
    for check in ("Verification:", "**Let me double-check this:**", "We verify."):
        text = f"{steps}\nAnswer: 45\n\n{check}\nStep 1: 45-5=40 holds\nStep 2: 40/2=20 holds\nAnswer: 45"
        assert parse_rationale("q", text, "45").steps == ("20+20=40", "40+5=45")
    text = f"Step 1: I think 7\nStep 2: let me check\n{steps}\nAnswer: 45"  # nothing was stated before it
    assert parse_rationale("q", text, "45").steps == ("20+20=40", "40+5=45")


step = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=40)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(step, min_size=2, max_size=8), st.integers(-999, 9999))
def test_whatever_the_teacher_writes_no_step_announces_an_answer(steps: list[str], answer: int) -> None:
    text = "\n".join(f"Step {number}: {line}" for number, line in enumerate(steps, start=1)) + f"\nAnswer: {answer}"
    try:
        rationale = parse_rationale("q", text, str(answer))
    except UnusableRationale:
        return
    assert not any(states_answer(line) or "\n" in line for line in rationale.steps)
    assert not states_answer("".join(f"Step 1: {line}\n- {line}\n" for line in rationale.steps))


def test_all_of_gsm8k_parses(real_data: Callable[[str], Path]) -> None:
    rationales, report = load_rationales(DataConfig(path=str(real_data("gsm8k/train.jsonl"))))
    assert report.rows == report.parsed == len(rationales) == 7473
    assert not any(re.match(r"\W*(?:Step\s+)?\d+[.)]\s", line) for known in rationales for line in known.steps)
    assert not any("<<" in line or "####" in line for rationale in rationales for line in rationale.steps)


def test_all_real_teacher_rationales_parse_and_keep_their_latex(real_data: Callable[[str], Path]) -> None:
    path = real_data("bridge/stage3_error_samples.json")
    columns = {"question": "question", "answer": "gold_answer", "rationale": "teacher_cot"}
    rationales, report = load_rationales(DataConfig(path=str(path), columns=columns))
    assert report.parsed == report.rows == 568
    assert not any("thinking." in step for known in rationales for step in known.steps)  # 8 transcripts of Ollama
    originals = json.loads(path.read_text(encoding="utf-8"))
    assert sum("[math]" in render_solution(rationale) for rationale in rationales) == 0
    with_latex = sum("\\" in row["teacher_cot"].rpartition("Step 1:")[2].partition("Answer:")[0] for row in originals)
    assert sum(any("\\" in line for line in rationale.steps) for rationale in rationales) == with_latex - 1
    assert sum(answer_in_step(row["teacher_cot"], row["gold_answer"]) for row in originals) == 359
    assert not any("Answer:" in line for rationale in rationales for line in rationale.steps)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("90/2=45 red. 45/3=15 green. The answer is 15.", ("90/2=45 red.", "45/3=15 green.")),
        ("Each costs $4.50. $4.50*2=$9. 9+6=15. Answer: 15", ("Each costs $4.50.", "$4.50*2=$9.", "9+6=15.")),
        ("See No. 5 in Fig. 2. 5*3=15 in all. #### 15", ("See No. 5 in Fig. 2.", "5*3=15 in all.")),
        ("He is 5 ft. 3 in. tall. 5*3=15. #### 15", ("He is 5 ft. 3 in. tall.", "5*3=15.")),
        ("From 1, 2, ... 10 take 3. 3*5=15. #### 15", ("From 1, 2, ... 10 take 3.", "3*5=15.")),
        ("1. First 3*4=12. 2. Then 12+3=15. #### 15", ("First 3*4=12.", "Then 12+3=15.")),
        ("1. 3*4=12 2. 12+3=15\n#### 15", ("3*4=12", "12+3=15")),
        (r"\(3*4=12\). \(12+3=15\). #### 15", (r"\(3*4=12\).", r"\(12+3=15\).")),
        ("3*4=12。12+3=15。#### 15", ("3*4=12。", "12+3=15。")),
        ("-3+15=12. -1+16=15. #### 15", ("-3+15=12.", "-1+16=15.")),
    ],
)
def test_a_sentence_may_begin_with_a_digit(text: str, steps: tuple[str, ...]) -> None:
    assert parse_rationale("?", text, "15").steps == steps


@pytest.mark.parametrize("text", ["It weighs 3.5 kg of 7.25. #### 15", "No. 5 of approx. 15. #### 15", "3. #### 15"])
def test_a_number_with_a_stop_of_its_own_begins_no_sentence(text: str) -> None:
    with pytest.raises(UnusableRationale, match="fewer than 2"):
        parse_rationale("?", text, "15")


CODED = "Let us compute it.\n{}\nThus 3*5=15 is it.\nThe answer is 15."


@pytest.mark.parametrize(
    "code",
    [
        "<llm-code>\nleft = 3*5\nleft\n</llm-code>\n<llm-code-output>\n15\n</llm-code-output>",
        "```python\nleft = 3*5\n```\n```output\n15\n```",
        "```py\nleft = 3*5\n```",
        "~~~ {.python}\nleft = 3*5\n~~~",
        '<tool_call>\n{"name": "calc", "arguments": {"a": 3}}\n</tool_call>',
        '{"name": "calc", "arguments": {"a": 3}}',
        "<|python_tag|>left = 3*5",
        "[TOOL_CALLS] calc",
        '<gadget id="calculator">3*5</gadget>\n<output>15</output>',
        "<execution_result>15</execution_result>",
        "<code>left = 3*5</code>",
        "```\nimport math\nprint(3*5)\n```",
        "def solve():\n    return 3*5",
        "Action: calc\nAction Input: 3*5\nObservation: 15",
    ],
)
def test_a_solution_that_calculates_in_code_is_left_out_by_that_name(code: str) -> None:
    with pytest.raises(UnusableRationale, match="in code"):
        parse_rationale("?", CODED.format(code), "15")
    thought = parse_rationale("?", f"<think>{code}</think>First 3*2=6.\nThen 6+9=15.\nAnswer: 15", "15")
    assert thought.steps == ("First 3*2=6.", "Then 6+9=15.")


@pytest.mark.parametrize(
    "text",
    [
        "<reasoning>\n3*4=12\n12+3=15\n</reasoning>\n<answer>15</answer>",
        '<step n="1">3*4=12</step><step n="2">12+3=15</step>\nAnswer: 15',
        "<scratchpad>3*4=12<br>12+3=15</scratchpad><br/>The answer is 15.",
        "<|begin_solution|>\n3*4=12\n12+3=15\n<|end_solution|>\nAnswer: 15",
        "```\n3*4=12\n12+3=15\n```\nAnswer: 15",
    ],
)
def test_tags_of_any_name_are_no_steps(text: str) -> None:
    assert parse_rationale("?", text, "15").steps == ("3*4=12", "12+3=15")


def test_comparisons_are_no_tags() -> None:
    steps = parse_rationale("?", "3 < 5 and 5 > 2, x<y\n3*5=15 > 14\nAnswer: 15", "15").steps
    assert steps == ("3 < 5 and 5 > 2, x<y", "3*5=15 > 14")


@pytest.mark.parametrize(
    "torn", [r'"\frac{1}{2}"', r'"\boxed{15}"', r'"3 \times 5"', r'"\text{ eggs}"', r'"\rightarrow"']
)
def test_latex_that_json_has_torn_is_left_out_by_that_name(torn: str) -> None:
    text = f"3*4=12\n{json.loads(torn)}\n12+3=15\n#### 15"
    for row in (("?", text, "15"), (json.loads(torn), "3*4=12\n12+3=15\n#### 15", "15")):
        with pytest.raises(UnusableRationale, match="backslash"):
            parse_rationale(*row)
    whole = json.loads(torn.replace("\\", "\\\\"))
    assert parse_rationale("?", text.replace(json.loads(torn), f"{whole} so"), "15").steps


def test_tables_and_line_ends_are_not_taken_for_torn_latex() -> None:
    text = "item\tan\tto\r\nred\tring\r\n3*4=12\n\f\nnot 12+3=15\n#### 15"
    assert len(parse_rationale("?\r\nhow many?\tthe total", text, "15").steps) >= 2


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("First, 3 + 5 = 8. Then 8 * 2 = 16. So 16 - 1 = 15. The answer is 15.",
         ("First, 3 + 5 = 8.", "Then 8 * 2 = 16.", "So 16 - 1 = 15.")),
        ("<p>3*4=12</p>\n<p class='x'>12+3=15</p><p>The answer is <b>15</b>.</p>", ("3*4=12", "12+3=15")),
        ("<ol><li>3*4=12<li value=2>12+3=15</ol>The answer is 15.", ("3*4=12", "12+3=15")),
        ("Zuerst 3*4=12. Dann 12+3=15.\nAntwort: 15", ("Zuerst 3*4=12.", "Dann 12+3=15.")),
        ("Zuerst 3*4=12. Dann 12+3=15. Die Antwort ist 15.", ("Zuerst 3*4=12.", "Dann 12+3=15.")),
        ("3*4=12\n12+3=15\nLa respuesta es 15.", ("3*4=12", "12+3=15")),
        ("3*4=12\n12+3=15 Réponse : 15", ("3*4=12", "12+3=15")),
        ("首先3*4=12。然后12+3=15。\n答案：15", ("首先3*4=12。", "然后12+3=15。")),
        ("3*4=12\n12+3=15\n答案是15。", ("3*4=12", "12+3=15")),
        ("3*4=12\n12+3=15\n【答案】15", ("3*4=12", "12+3=15")),
        ("3*4=12\n12+3=15\n答え：15個", ("3*4=12", "12+3=15")),
    ],
)  # fmt: skip
def test_whatever_says_the_answer_is_no_step(text: str, steps: tuple[str, ...]) -> None:
    assert parse_rationale("?", text, "15").steps == steps
