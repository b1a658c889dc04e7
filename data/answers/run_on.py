"""Where a completion goes on to another problem: its turn marks as decoded, headings, or a question without any.

A base that has answered goes on to write what stood behind such answers in its corpus. Only the first problem's answer
counts. Positions are those of the text as it is, since a teacher's solution is cut there.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import re
from typing import NamedTuple

from .numbers import CHARACTERS

MAX_CUTS = 8
"""Marks tried, from the first; bounds the time a degenerate completion takes."""

_ROLE = r"(?:user|assistant|human|model|system)"
_TURN = (
    r"<\|/?(?:im_end|im_start|im_sep|endoftext|end_of_text|begin_of_text|eot_id|eom_id|start_header_id|end|user|assistant|system"
    r"|return|call|turn|eos|endofprompt|end_of_turn_token|start_of_turn_token|startoftext|begin▁of▁sentence|end▁of▁sentence"
    rf"|eot|eod|eom|{_ROLE})\|>|</?(?:start_of_turn|end_of_turn|turn|eos|bos|s)>|\[/?INST\]|<</?SYS>>|\[(?:UNK|SEP|EOS|EOT)\]"
    rf"|(?:\n[ \t]*|(?<=[0-9.!?$}})\]*。]))(?-i:{_ROLE})[ \t]*\n"
)
_ASKS = (
    r"Question|Problem|Human|User|Instruction|Q|Frage|Aufgabe|Pregunta|Problema|Domanda|Pergunta|Questão|Problème|Vraag|Pytanie"
    r"|Zadanie|Otázka|Kérdés|Întrebare|Soru|Pertanyaan|Câu hỏi|Bài toán|Вопрос|Задача|Питання|Ερώτηση"
    r"|问题|問題|题目|題目|问|質問|질문|문제|प्रश्न|सवाल|প্রশ্ন|سؤال|السؤال|سوال|שאלה|คำถาม"
)
_WEAKLY = r"Input|Task|Example|Exercise|Exercice|Prompt|Instructions?|Beispiel|Ejemplo|Exemple|例题|例題?|예제|उदाहरण"
_RUN_ON = re.compile(
    rf"{_TURN}"
    rf"|\n[ \t]*(?:\*\*|#{{1,4}} ?)?(?:next )?(?:{_ASKS})[ \t]?[0-9]{{0,4}}\s?:"
    rf"|(?P<weak>\n[ \t]*(?:#{{1,4}} ?(?:next )?(?:{_ASKS}|{_WEAKLY})[ \t]?[0-9]{{0,4}}[ \t]*:?[ \t]*(?:\n|(?<=:))"
    rf"|\*\*(?:{_ASKS}|{_WEAKLY})[ \t]?[0-9]{{0,4}}\s?:?\*\*\s?:?|(?:next )?(?:{_WEAKLY})[ \t]?[0-9]{{0,4}}\s?:"
    rf"|(?:next |new )(?:{_ASKS})\b|(?:{_ASKS})[ \t][0-9]{{1,4}}[ \t]*(?:[.)]|[.)]?[ \t]*\n)"
    rf"|[\[【](?:{_ASKS}|{_WEAKLY})[ \t]?[0-9]{{0,4}}[\]】]))",
    re.IGNORECASE,
)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>|<thought>|\[THINK\]|<\|begin_of_thought\|>", re.IGNORECASE)
_THOUGHTS_END = re.compile(
    r"</think(?:ing)?>|</thought>|\[/THINK\]|<\|end_of_thought\|>|(?:\.\.\.|\u2026)done thinking\.", re.IGNORECASE
)
# A line that asks something, and is no thought about what was answered before it.
_QUESTION = re.compile(r"\n[ \t]*(?P<line>[^\n?？؟]{0,600}[?？؟])[^\n]{0,200}(?=\n|\Z)")
_REFLECTS = re.compile(
    r"[\W_]*(?:wait|hmm|hm|but|actually|let|is|are|was|were|does|do|did|should|can|could|so|no|oh|hold|check|correct"
    r"|right|sure|why|how did|how do|what if|or|and|because|since|therefore|this|that|it|we|i|you|my"
    r"|the answer|the question|question)\b",
    re.IGNORECASE,
)
_HASHED = re.compile(r"^[ \t]*####[ \t]*[-$]{0,2}[0-9][0-9,.]*[ \t]*[A-Za-z%$ ]{0,40}$", re.MULTILINE)
# Nothing, another such line, or second thoughts.
_GOES_ON_FROM_HASHES = re.compile(
    r"\s*(?:\Z|####|(?:wait|hmm|actually|no|oops|sorry|correct(?:ion|ed)?|let me|hold on|but|or|and|maybe"
    r"|perhaps|possibly|alternatively|otherwise|i (?:made|was|think))\b)",
    re.IGNORECASE,
)


class Cut(NamedTuple):
    """One place where a text may go on to something else."""

    start: int
    kind: str
    """`mark`, a turn or a heading; `weak`, one that may as well stand before the solution; `hashes`, behind
    GSM8K's last line; `question`, before a line that asks something."""


def cuts(text: str) -> list[Cut]:
    """The places where a text goes on to another problem or tells its own once more, the first ones in order."""
    plain = text.translate(CHARACTERS)
    began, ended = _THOUGHTS_BEGIN.search(text), _THOUGHTS_END.search(text)
    thinks_until = ended.start() if ended else -1

    def is_thought(start: int) -> bool:
        return start < thinks_until and not (began and began.start() > start)

    found = [Cut(mark.start(), "weak" if mark["weak"] else "mark") for mark in _RUN_ON.finditer(plain)]
    found += [Cut(line.start(), "question") for line in _QUESTION.finditer(plain) if not _REFLECTS.match(line["line"])]
    hashed = _HASHED.search(plain, max(thinks_until, 0))
    if hashed and not _GOES_ON_FROM_HASHES.match(plain, hashed.end()):
        found.append(Cut(hashed.end(), "hashes"))
    return sorted(cut for cut in found if not is_thought(cut.start))[:MAX_CUTS]


def asks(text: str) -> bool:
    """Whether a line of `text` asks something, as a solution by questions of its own does."""
    return bool(_QUESTION.search(f"\n{text.translate(CHARACTERS)}"))


def spoken(text: str) -> str:
    """What a reasoning model says after its thoughts, all of `text` where it holds no end of thoughts."""
    ends = list(_THOUGHTS_END.finditer(text))
    return text[ends[-1].end() :] if ends else text
