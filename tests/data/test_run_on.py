"""Only the first problem's answer counts, however a completion goes on to the next one."""
# ruff: noqa: RUF001

import pytest

from plyfold.data.answers.reader import extract_answer, extract_solution

ANSWERED = ["2+16=18\n#### 18", "9*2=18\nAnswer: 18", "9*2=18\nThe answer is 18.", "9*2 = \\boxed{18}."]
NEXT = "Tom has 3 apples and buys 4 more. How many?"
GOES_ON = [
    f"\n\n{NEXT}\n3+4=7\n#### 7",
    f"\n\n{NEXT}\n3+4=7\nAnswer: 7",
    f"\n\n{NEXT}\nThe answer is 7.",
    f"\n\n{NEXT}\n\\boxed{{7}}",
    "\n\n汤姆有3个苹果，又买了4个。他有多少个？\n3+4=7\nAnswer: 7",
    "\n\nTom tiene 3 manzanas y compra 4. ¿Cuántas tiene?\nAnswer: 7",
    f"\nuser\n{NEXT}\nassistant\nAnswer: 7",
    f"user\n\n{NEXT}assistant\n\nAnswer: 7",
    f"<|im_end|>\n<|im_start|>user\n{NEXT}<|im_end|>\n<|im_start|>assistant\nAnswer: 7",
    "</s>Answer: 7",
    "<eos>Answer: 7",
    f"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{NEXT}\n#### 7",
    f"[INST] {NEXT} [/INST] Answer: 7",
    f"<end_of_turn>\n<start_of_turn>user\n{NEXT}\nAnswer: 7",
    f"<|endoftext|>{NEXT}\nAnswer: 7",
    f"<｜end▁of▁sentence｜>{NEXT}\nAnswer: 7",
    f"<|user|>\n{NEXT}\n<|assistant|>\nAnswer: 7",
    f"\n[Question] {NEXT}\n[Answer] 7\n#### 7",
    "\n\nInput: Tom\nOutput: 3+4=7\n#### 7",
    f"\n\nQ: {NEXT}\nA: 3+4=7\n#### 7",
    f"\n\nProblem 2\n{NEXT}\nAnswer: 7",
    f"\n\n## Problem 2\n{NEXT}\nAnswer: 7",
    f"\n\nQuestion 2. {NEXT}\nAnswer: 7",
    f"\n\nExample 2:\n{NEXT}\nAnswer: 7",
    f"\n\nNext question: {NEXT}\nAnswer: 7",
    f"\n### Instruction:\n{NEXT}\n### Response:\nAnswer: 7",
    f"\nHuman: {NEXT}\nAssistant: Answer: 7",
    f"\n\nFrage: {NEXT}\nAntwort: 7",
    "\n\nPregunta: x\nRespuesta: 7",
    "\n\n问题：汤姆有3个苹果\n答案：7",
    "\n\nالسؤال: ٣\nالجواب: 7",
]


@pytest.mark.parametrize("answered", ANSWERED)
@pytest.mark.parametrize("more", GOES_ON)
def test_the_first_problem_counts(answered: str, more: str) -> None:
    assert extract_answer(answered + more) == "18"


@pytest.mark.parametrize(
    "text",
    [
        f"She makes 18.<end_of_turn>\n<start_of_turn>user\n{NEXT}",
        f"She makes 18.\nuser\n{NEXT}",
        f"She makes 18.user\n{NEXT}",
        f"<|im_start|>assistant\nAnswer: 18<|im_end|>\n<|im_start|>user\n{NEXT}\nAnswer: 7",
        f"assistant\nAnswer: 18\nuser\n{NEXT}\nAnswer: 7",
        "#### 18\n\nTom has 3 apples. He buys 4. Find the total.\n3+4=7\n#### 7",
        "#### 18\nTom has 3 apples. He buys 4. Find the total.\nAnswer: 7",
    ],
)
def test_a_first_answer_without_a_statement_or_without_a_question(text: str) -> None:
    assert extract_answer(text) == "18"


@pytest.mark.parametrize(
    "text",
    [
        "How many eggs? 16-7=9\nHow many dollars? 9*2=18\n#### 18",
        "How many eggs?\nAnswer: 9\nHow many dollars?\nAnswer: 18",
        "Answer: 17\nWait, is that right?\nAnswer: 18",
        "Answer: 17\n\nBut does that fit?\nAnswer: 18",
        "#### 17\nWait, no.\n#### 18",
        "Question: restated?\nAnswer: 18",
        "\nProblem: restated 4?\nSolution: 18\nAnswer: 18",
        "### Problem\nTom\n### Solution\n\\boxed{18}",
        "user\nhow many?\nassistant\nAnswer: 18",
        "Let me restate. Tom has 3 apples. How many?\n\nAnswer: 18",
        "First box \\boxed{9}.\nHow much money?\nThen \\boxed{18}",
    ],
)
def test_a_solution_that_asks_or_corrects_itself_is_read_to_its_end(text: str) -> None:
    assert extract_answer(text) == "18"


def test_a_teachers_solution_is_cut_where_another_problem_begins() -> None:
    said, found = extract_solution(f"16+2=18\n#### 18\n\n{NEXT}\n3+4=7\n#### 7")
    assert (said.strip(), found.value) == ("16+2=18\n#### 18", "18")


def test_a_solution_that_says_its_answer_twice_is_whole() -> None:
    text = "9*2=18\n#### 18\nso it is\n#### 18"
    assert extract_solution(text)[0] == text
