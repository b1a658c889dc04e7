"""Answer extraction: a table of hard cases, and every GSM8K gold in every spelling we have met."""

import json
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plyfold.core.errors import ConfigError
from plyfold.data.answers.reader import extract, extract_answer, gold_answer, normalise, same_answer

HARD = [
    # (completion, answer, layer)
    ("Step 1: 9 * 2 = 18\nAnswer: 18", "18", "answer-line"),
    ("Answer: 18\n\nQuestion: next, 4 more?\nAnswer: 5", "18", "answer-line"),
    ("Answer: 18\nQuestion 2: next, 4 more?\nAnswer: 5", "18", "answer-line"),
    ("Answer: 18<|im_end|>\n44", "18", "answer-line"),
    ("It is 18 in total.\n\nHuman: next question 4", "18", "last-number"),
    ("#### 18\n\nHuman: next question 4", "18", "answer-line"),
    ("####18", "18", "answer-line"),
    ("#### -3", "-3", "answer-line"),
    ("#### 1. First step\nthen \\boxed{7}", "7", "boxed"),
    ("\nQuestion: restated?\nAnswer: 5", "5", "answer-line"),
    ("Answer: 17, no.\nAnswer: 18", "18", "answer-line"),
    ("Answer: 18\nAnswer:", "18", "answer-line"),
    ("<think>Answer: 17</think>\nThus 9 * 2 = \\boxed{18}", "18", "boxed"),
    ("Answer: 17\n</think>\nShe has 18.", "18", "last-number"),
    ("<thinking>\nQuestion: restated, 4?\nAnswer: 17</thinking>The answer is 18.", "18", "answer-is"),
    ("<think>4</think>Answer: 18\n\nQuestion: 5?\n<think>6</think>Answer: 7", "18", "answer-line"),
    ("Answer: 18\n\nQuestion: 5?\n<think>6</think>Answer: 7", "18", "answer-line"),
    ("<think>Answer: 18</think>\n", "18", "answer-line"),
    ("Answer:\n\n$18", "18", "answer-line"),
    ("Answer:\n\n- 18", "18", "answer-line"),
    ("Answer: - 18", "-18", "answer-line"),
    ("Answer: 9 eggs × $2 = $18", "18", "answer-line"),  # noqa: RUF001
    ("Answer: 36 divided by 2 = 18", "18", "answer-line"),
    ("Answer: 18 eggs because 16 - 3 = 13", "18", "answer-line"),
    ("Answer: 2^5 = 32", "32", "answer-line"),
    ("Answer: 18 (= 9 * 2)", "18", "answer-line"),
    ("The answer is 18 = 9 * 2.", "18", "answer-is"),
    ("#### 18 (9 eggs)", "18", "answer-line"),
    ("#### $18 per day (9 eggs at $2)", "18", "answer-line"),
    ("#### 18, since 9 * 2", "18", "answer-line"),
    ("Let's find the answer:\n\n3 * 4 = 12\n12 + 6 = 18\n\n\\boxed{18}", "18", "boxed"),
    ("So we get the answer: 18", "18", "answer-line"),
    ("So we get the final answer: 18\n\nLet me double check: 18 / 2 = 9.", "18", "answer-line"),
    ("## Step 3: Calculate the total\nAnswer: 18\n\nExplanation: 9 eggs at 2", "18", "answer-line"),
    ("18 dollars, as we can easily check\n\nAnswer: 18 eggs at 2", "18", "answer-line"),
    ("### Answer\n\n16 - 7 = 9\n9 * 2 = 18\n\n\\boxed{18}", "18", "boxed"),
    ("Final answer\n\n- Janet: 9\n- Tom: 18", "18", "last-number"),
    ("Answer\n\nShe sells 9.\nShe makes 9 * 2 = $18.\n\nThe answer is 18.", "18", "answer-is"),
    ("<answer>The total is 9 eggs.\nShe makes 18</answer> of 20", "18", "answer-line"),
    ("Solved in 3 steps.\n\n### Problem\nJanet.\n\n### Solution\n9 * 2 = 18\n\\boxed{18}", "18", "boxed"),
    ("In 2 parts.\n**Question**: how much?\n9 * 2 = 18\n**Answer**: 18", "18", "answer-line"),
    ("Answer: 20-2 = 18 + 2 extra", None, "answer-line"),
    ("Answer: 18 apples of 36 apples = 50%", "18", "answer-line"),
    ("\\boxed{18}\n\nCheck the answer: 18/2 = 9.", "18", "boxed"),
    ("Answer: 18\n\n**Question**: Tom has 5.\n**Answer**: 5", "18", "answer-line"),
    ("Answer: 18\n\n### Question\nTom has 5.\nAnswer: 5", "18", "answer-line"),
    ("<answer>18</answer> of 20", "18", "answer-line"),
    ("\\boxed{1\\frac{1}{2}}", "1.5", "boxed"),
    ("\\boxed{\\cfrac{3}{4}}", "0.75", "boxed"),
    ("\\boxed{\\frac{36}2}", "18", "boxed"),
    ("Answer: 3½ cups", "3.5", "answer-line"),
    ("Answer: -1 1/2", "-1.5", "answer-line"),
    ("**Final Answer:** **$1,800.00**", "1800", "answer-line"),
    ("**Answer**: 18", "18", "answer-line"),
    ("ANSWER : 18", "18", "answer-line"),
    ("Answer: 18 (6 * 3 = 18, 7 left)", "18", "answer-line"),
    ("Answer: 18 since 3 + 4 = 7 does not matter", "18", "answer-line"),
    ("Answer: 3/4 of 24 = 18", "18", "answer-line"),
    ("Answer: 45 + 135 + 270 = 450 souvenirs.", "450", "answer-line"),
    ("Answer: 18 dollars. She had 7 days.", "18", "answer-line"),
    ("Answer: the total is 18", "18", "answer-line"),
    ("Answer: the answer is 18 m^2", "18", "answer-line"),
    ("Answer: <<9*2=18>>18 dollars", "18", "answer-line"),
    ("Answer: \u2212$5", "-5", "answer-line"),
    ("Answer: - 5", "-5", "answer-line"),
    ("Answer: $-5", "-5", "answer-line"),
    ("Answer: .5", "0.5", "answer-line"),
    ("Answer: 1/3", "1/3", "answer-line"),
    ("Answer: \\(18\\)", "18", "answer-line"),
    ("Answer: $$18$$", "18", "answer-line"),
    ("Answer: Rs. 18", "18", "answer-line"),
    ("Answer: Rs 9 + Rs 9 = Rs18", "18", "answer-line"),
    ("Answer: in all, RM18", "18", "answer-line"),
    ("Answer: USD 18 for 9", "18", "answer-line"),
    ("Answer: USD -18", "-18", "answer-line"),
    ("Answer: US$18 for 9", "18", "answer-line"),
    ("9 + 9 = HK$18", "18", "last-number"),
    ("The total is Rs18.", "18", "last-number"),
    ("The total is Rs.18.", "18", "last-number"),
    ("so ₱1,800 in total", "1800", "last-number"),
    ("Answer: \uff11\uff18", "18", "answer-line"),
    ("The total is 18 in group A5 of VIRM9", "18", "last-number"),
    ("Final Answer\n\n\\[\\boxed{18}\\]", "18", "answer-line"),
    ("\\boxed{\\$1{,}800}", "1800", "boxed"),
    ("\\boxed{18\\text{ dollars}}", "18", "boxed"),
    ("\\boxed{\\frac{3}{4}}", "0.75", "boxed"),
    ("\\boxed{x = \\boxed{4}}", "4", "boxed"),
    ("\\boxed{7}, so Answer: 8", "8", "answer-line"),
    ("So the answer is **18** after 3 days.", "18", "answer-is"),
    ("She has 18...", "18", "last-number"),
    ("so 1{,}800 in total", "1800", "last-number"),
    ("so 1\\,800 in total", "1800", "last-number"),
    ("so 1\u202f800 in total", "1800", "last-number"),
    ("from 20-5", None, "last-number"),
    ("(-18)", "-18", "last-number"),
    ("between 3\u20135 days", None, "last-number"),
    ("it grew 18%", "18", "last-number"),
    ("the area is 18 m^2", "18", "last-number"),
    ("H2O and x2", None, "none"),
    ("Answer: unknown", None, "none"),
    ("Answer: 1/0", None, "none"),
    ("", None, "none"),
    ("9" * 5000, None, "none"),
]


@pytest.mark.parametrize(("text", "answer", "method"), HARD, ids=[repr(row[0][:40]) for row in HARD])
def test_hard_cases(text: str, answer: str | None, method: str) -> None:
    found = extract(text)
    assert (found.value, found.method) == (answer, method)
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("1000", "1,000", True),
        ("18.00", "18", True),
        ("18", "18.00", True),
        ("18 dollars", "18", True),
        ("-3", "\u22123", True),
        ("0.75", "3/4", True),
        ("0.3333", "1/3", False),
        ("18.5", "18", False),
        ("3", "-3", False),
        ("18", "She has 18.\n#### 18", True),
        (None, "18", False),
        ("18", "", False),
        ("", "", False),
        ("Yes", "yes", True),
        ("yes", "18", False),
        ("2", "2x+3", False),
        ("2x+3", "2x+3", True),
        ("3", "\\sqrt{3}", False),
        ("2", "2^{10}", False),
        ("3", "x = 3", True),
        ("2", "2x + 3 = 7", False),
        ("5", "5 m/s", True),
        ("-3", "-3 m", True),
        ("18", "18 m^2", True),
    ],
)
def test_same_answer(answer: str | None, gold: str, same: bool) -> None:
    assert same_answer(answer, gold) is same


def test_gold_answer_reads_solutions_and_plain_golds() -> None:
    assert gold_answer("2 * 500 = <<2*500=1000>>1000\n#### 1,000") == "1000"
    assert gold_answer("-3") == "-3"
    with pytest.raises(ConfigError, match="no number"):
        gold_answer("#### many")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_spelling_is_exact_and_stable(value: Decimal) -> None:
    spelt = normalise(f"{value:f}")
    assert spelt is not None
    assert Decimal(spelt) == value
    assert normalise(spelt) == spelt
    assert extract_answer(f"Step 1: 5 + 5 = 10\nAnswer: {value:,f}") == spelt


@pytest.mark.slow
@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    value = extract_answer(text)
    assert value is None or same_answer(value, value)


@pytest.mark.parametrize(
    "unit", ["Answer: ", "1,", "\\boxed{", "<<", "- ", "\\frac{1}", "9", "$", "= ", "#### 1 ", "\n"]
)
def test_hostile_repetition_is_read_in_linear_time(unit: str) -> None:
    text = unit * (40_000 // len(unit))
    start_s = time.process_time()
    extract(text)
    assert time.process_time() - start_s < 2.0  # quadratic patterns take minutes at this length


# ---- all 8,792 golds

RENDERINGS = {
    "plain": "{n}",
    "dollar": "${n}",
    "rupees": "Step 1: 3 + 4 = 7\nShe pays Rs{n}.",
    "rupees, abbreviated": "Answer: Rs. {n}",
    "currency's code": "Answer: USD {n} for 5 days",
    "cents": "{n}.00",
    "full stop": "{n}.",
    "units": "{n} apples",
    "sentence": "Step 1: 3 + 4 = 7\nSo, in 3 days, the answer is {n} dollars.",
    "ends": "Step 1: 3 + 4 = 7\nIn 3 days she makes ${n}.",
    "hashes": "3 + 4 = <<3+4=7>>7\n#### {n}",
    "boxed": "3 + 4 = 7, hence \\boxed{{{n}}}.",
    "boxed dollars": "\\[ 3 + 4 = 7 \\]\n\\boxed{{\\${n} \\text{{ a day}}}}",
    "latex commas": "\\boxed{{{latex}}}",
    "unicode minus": "Answer: {unicode}",
    "percent": "Answer: {n}%",
    "answer line": "Step 1: 3 + 4 = 7\nAnswer: {n}",
    "bold": "**Final Answer:** **{n}** eggs in 5 days",
    "equation": "Answer: 3 * 7 = {n}",
    "run-on": "Answer: {n}\n\nQuestion: She has 12 eggs. How many are left?\nSolution:\nStep 1: 5\nAnswer: 5",
}


def _renderings(gold: str) -> list[tuple[str, str]]:
    plain = gold.replace(",", "")
    spellings = {plain, gold, f"{int(plain):,}"}
    return [
        (name, template.format(n=n, latex=n.replace(",", "{,}"), unicode=n.replace("-", "\u2212")))
        for name, template in RENDERINGS.items()
        for n in spellings
    ]


@pytest.mark.parametrize("gold", ["18", "0", "-3", "1,000", "2,125,000", "-1,250", "57500", "5"])
def test_renderings_of_typical_golds(gold: str) -> None:
    for name, text in _renderings(gold):
        assert same_answer(extract_answer(text), gold), (name, text)


def test_renderings_of_all_golds(real_data: Callable[[str], Path]) -> None:
    golds, wrong = [], []
    for name in ("gsm8k/train.jsonl", "gsm8k/test.jsonl"):
        for line in real_data(name).read_text(encoding="utf-8").splitlines():
            solution = json.loads(line)["answer"]
            gold = solution.rsplit("####", 1)[1].strip()
            golds.append(gold)
            expected = str(int(gold.replace(",", "")))
            if gold_answer(solution) != expected or extract_answer(solution) != expected:
                wrong.append(("solution", solution[-60:]))
    assert len(golds) == 8792
    for gold in sorted(set(golds)):
        wrong += [(name, text) for name, text in _renderings(gold) if not same_answer(extract_answer(text), gold)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: 100 000", "100000"),
        ("Answer: $3 400.", "3400"),
        ("Answer: 1 000 000 dollars", "1000000"),
        ("So \\boxed{16 300}", "16300"),
        ("Answer: 5 100 g bags", "5"),
        ("Answer: 2020 300", None),
    ],
)
def test_digits_grouped_by_blanks_are_read_where_they_can_count_nothing(text: str, value: str | None) -> None:
    assert extract_answer(text) == value
