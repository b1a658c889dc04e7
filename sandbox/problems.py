"""Seeded word problems in the format of GSM8K, with a teacher that is always right, and verbose half of the time.

A story follows one person's pile of things through two to four calculations. Half of the stories also mention what
somebody else has or does (the aside): it must be ignored, and is what a careless reader adds to the pile. The module
knows nothing about pretraining styles (`diet.py`) or prompts (`plyfold.stages.prompts.tasks`).

Splits are disjoint by construction: the SHA-256 of a question decides whether it may be used for pretraining, for
training or for testing. Only `random.Random` draws, so rows are equal on every platform.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Split = Literal["train", "test"]
Shelf = Literal["diet", "train", "test"]

MAX_TOTAL = 199
"""No running total of a story's right solution exceeds this: hard enough that nothing is always right."""
BRIEF = 0.5
"""Rationales that the teacher writes as equations alone.

With half of them about half of the samples are concise after supervised training, and rewards turned the rest under
every seed tried; with a quarter, on another base, they did not under one of nine (benchmarks/LOG.md)."""

_PEOPLE = (
    ("Mia", "She"), ("Anna", "She"), ("Lucy", "She"), ("Nora", "She"),
    ("Emma", "She"), ("Rosa", "She"), ("Tom", "He"), ("Ben", "He"),
    ("Sam", "He"), ("Leo", "He"), ("Max", "He"), ("Paul", "He"),
)  # fmt: skip
_ITEMS = ("apples", "pens", "cards", "shells", "coins", "stamps", "books", "eggs", "cookies", "stickers", "marbles",
          "beads")  # fmt: skip
_HOLDERS = ("bags", "boxes", "packs", "jars", "baskets")
_GAINS = (("buys", "buys {n} more {items}"), ("finds", "finds {n} {items} in the park"),
          ("gets", "gets {n} {items} from {friend}"), ("wins", "wins {n} {items} at the fair"))  # fmt: skip
_LOSSES = (("gives", "gives {n} {items} to {friend}"), ("loses", "loses {n} {items} on the way"),
           ("sells", "sells {n} {items} at the market"), ("breaks", "breaks {n} {items} by accident"))  # fmt: skip
_TIMES = ((2, "doubles", "doubles the number of {items}"), (3, "triples", "triples the number of {items}"))
_ASIDES = (("has", "{friend} has {n} {items} at home"), ("counts", "{friend} counts {n} {items} in a shop"),
           ("keeps", "{friend} keeps {n} {items} in a drawer"), ("buys", "{friend} buys {n} {items} too"))  # fmt: skip
_WHEN = ("Then", "Later", "After lunch", "The next day")


@dataclass(frozen=True, kw_only=True)
class Calculation:
    """One calculation of a solution."""

    cue: str
    """The story's verb for this step, e.g. `buys`."""
    said: str
    """The step's own clause of the story, e.g. `Mia buys 5 more pens`."""
    left: int
    """First operand."""
    sign: str
    """One of + - * /."""
    right: int
    """Second operand."""
    unit: str
    """What is counted."""
    part: bool
    """Whether the result is only a part of the pile (the content of the bags that are then added)."""

    @property
    def result(self) -> int:
        """The value of the calculation."""
        match self.sign:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    @property
    def equation(self) -> str:
        """The bare equation, e.g. `12+5=17`."""
        return f"{self.left}{self.sign}{self.right}={self.result}"

    @property
    def marked(self) -> str:
        """The equation with GSM8K's calculator mark, e.g. `12+5=<<12+5=17>>17`."""
        return f"{self.left}{self.sign}{self.right}=<<{self.equation}>>{self.result}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """One sentence of a story."""

    kind: Literal["start", "packed", "gain", "packs", "loss", "times", "half", "aside"]
    """What happens to the pile; an aside leaves it alone."""
    cue: str
    """The verb."""
    said: str
    """The clause, without its subject's opener and full stop."""
    n: int
    """The amount, or the number of holders."""
    each: int = 0
    """Things in each holder, for `packed` and `packs`."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A word problem with everything needed to solve it rightly or carelessly."""

    question: str
    """The problem as the model reads it."""
    person: str
    """Whose pile is asked for."""
    pronoun: str
    """`She` or `He`."""
    items: str
    """What is counted."""
    events: tuple[Event, ...]
    """The sentences in order, the aside included."""

    @property
    def has_aside(self) -> bool:
        """Whether the story mentions an amount that must be ignored."""
        return any(event.kind == "aside" for event in self.events)

    def solve(self, *, fold_aside: bool = False) -> tuple[Calculation, ...]:
        """Work through the story.

        Args:
            fold_aside: Add the aside to the pile as a careless reader would; the result is then wrong.

        Returns:
            The calculations in story order; the last result is the answer.
        """
        steps: list[Calculation] = []
        total = 0

        def calculate(event: Event, left: int, sign: str, right: int, *, part: bool = False) -> int:
            steps.append(Calculation(cue=event.cue, said=event.said, left=left, sign=sign, right=right, unit=self.items,
                              part=part))  # fmt: skip
            return steps[-1].result

        for event in self.events:
            match event.kind:
                case "start":
                    total = event.n
                case "packed":
                    total = calculate(event, event.n, "*", event.each)
                case "gain":
                    total = calculate(event, total, "+", event.n)
                case "packs":
                    total = calculate(event, total, "+", calculate(event, event.n, "*", event.each, part=True))
                case "loss":
                    total = calculate(event, total, "-", event.n)
                case "times":
                    total = calculate(event, total, "*", event.n)
                case "half":
                    total = calculate(event, total, "/", 2)
                case "aside":
                    total = calculate(event, total, "+", event.n) if fold_aside else total
        return tuple(steps)


def _event(rng: random.Random, total: int, room: int, halved: bool, words: dict[str, str]) -> tuple[Event, int, int]:
    """Draw one event that keeps the total within bounds; returns it with the new total and the steps it costs."""
    person = words["person"]
    while True:
        kind = rng.choice(("gain", "gain", "loss", "loss", "times", "half", "packs"))
        n = rng.randint(2, 70)
        if kind == "gain" and total + n <= MAX_TOTAL:
            cue, text = rng.choice(_GAINS)
            return Event(kind="gain", cue=cue, n=n, said=f"{person} {text.format(n=n, **words)}"), total + n, 1
        if kind == "loss" and n < total:
            cue, text = rng.choice(_LOSSES)
            return Event(kind="loss", cue=cue, n=n, said=f"{person} {text.format(n=n, **words)}"), total - n, 1
        if kind == "times":
            times, cue, text = rng.choice(_TIMES)
            if total * times <= MAX_TOTAL:
                said = f"{person} {text.format(**words)}"
                return Event(kind="times", cue=cue, n=times, said=said), total * times, 1
        if kind == "half" and total % 2 == 0 and not halved:
            said = f"{person} puts half of the {words['items']} away"
            return Event(kind="half", cue="half", n=2, said=said), total // 2, 1
        if kind == "packs" and room >= 2:
            n, each = rng.randint(2, 6), rng.randint(2, 9)
            if total + n * each <= MAX_TOTAL:
                said = f"{person} buys {n} {words['holders']} with {each} {words['items']} each"
                return Event(kind="packs", cue=words["holders"], n=n, each=each, said=said), total + n * each, 2


def draw_story(rng: random.Random) -> Story:
    """Draw one story: two, three or four calculations, with an aside in half of the cases."""
    person, pronoun = rng.choice(_PEOPLE)
    friend = rng.choice([name for name, _ in _PEOPLE if name != person])
    words = {"person": person, "friend": friend, "items": rng.choice(_ITEMS), "holders": rng.choice(_HOLDERS)}
    num_steps = rng.choices((2, 3, 4), (30, 40, 30))[0]
    events: list[Event] = []
    if rng.random() < 0.3:
        n, each = rng.randint(2, 6), rng.randint(2, 9)
        said = f"{person} has {n} {words['holders']} with {each} {words['items']} each"
        events.append(Event(kind="packed", cue=words["holders"], n=n, each=each, said=said))
        total, spent = n * each, 1
    else:
        total, spent = rng.randint(3, 80), 0
        events.append(Event(kind="start", cue="has", n=total, said=f"{person} has {total} {words['items']}"))
    while spent < num_steps:
        halved = any(event.kind == "half" for event in events)
        event, total, cost = _event(rng, total, num_steps - spent, halved, words)
        events.append(event)
        spent += cost
    if rng.random() < 0.5:
        # Even, so that a careless total is even wherever the right one is, and half of it is a whole number.
        n = 2 * rng.randint(1, 25)
        cue, text = rng.choice(_ASIDES)
        aside = Event(kind="aside", cue=cue, n=n, said=text.format(n=n, **words))
        events.insert(rng.randint(1, len(events)), aside)
    sentences = [f"{events[0].said}."]
    for event in events[1:]:
        if event.kind == "aside":
            sentences.append(f"{event.said}.")
        else:
            sentences.append(f"{rng.choice(_WHEN)} {pronoun.lower()}{event.said.removeprefix(person)}.")
    sentences.append(f"How many {words['items']} does {person} have now?")
    return Story(question=" ".join(sentences), person=person, pronoun=pronoun, items=words["items"],
                 events=tuple(events))  # fmt: skip


def shelf_of(question: str) -> Shelf:
    """The one use a question may be put to, by its SHA-256: half pretraining, a quarter each train and test."""
    bucket = hashlib.sha256(question.encode()).digest()[0] % 4
    return "train" if bucket == 2 else "test" if bucket == 3 else "diet"


def draw_stories(shelf: Shelf, seed: int) -> Iterator[Story]:
    """Endless distinct stories of one shelf, in an order fixed by the seed."""
    rng = random.Random(f"plyfold-sandbox-{shelf}-{seed}")
    seen: set[str] = set()
    while True:
        story = draw_story(rng)
        if shelf_of(story.question) == shelf and story.question not in seen:
            seen.add(story.question)
            yield story


def tell(steps: tuple[Calculation, ...], story: Story, rng: random.Random, *, marks: bool) -> list[str]:
    """Write each step as a full sentence, as the teacher does.

    Args:
        steps: The calculations.
        story: Whose story it is.
        rng: Chooses among phrasings.
        marks: Whether to add GSM8K's `<<a*b=c>>` calculator marks.
    """
    lines = []
    for index, step in enumerate(steps):
        equation = step.marked if marks else step.equation
        said = step.said
        opener = "First," if index == 0 else rng.choice(("Next,", "Then", "After that,"))
        if step.part:
            close = f"so the {step.cue} hold {equation} {step.unit}."
        elif step.sign == "+" and index and steps[index - 1].part:
            said, close = f"{story.person} adds them to the rest", f"so in all there are {equation} {step.unit}."
        else:
            close = rng.choice(("so now {he} has {eq} {unit}.", "which makes it {eq} {unit}."))
            close = close.format(he=story.pronoun.lower(), eq=equation, unit=step.unit)
        lines.append(f"{opener} {said}, {close}")
    return lines


def note(steps: tuple[Calculation, ...], *, marks: bool) -> list[str]:
    """Write each step as a cued equation, e.g. `buys 24+12=36`; marks as for `tell`."""
    return [f"{step.cue} {step.marked if marks else step.equation}" for step in steps]


def make_problems(split: Split, num_rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Make GSM8K-format rows with right teacher rationales, half of them verbose.

    Args:
        split: `train` or `test`; their questions are disjoint by construction.
        num_rows: Number of distinct problems.
        seed: Order and choice of problems.

    Returns:
        Rows `{"question", "answer"}`; the answer has a step a line and ends with `#### N`.

    Raises:
        ValueError: Unknown split or a negative number of rows.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: expected 'train' or 'test'")
    if num_rows < 0:
        raise ValueError(f"num_rows is {num_rows}: expected 0 or more")
    return [{"question": question, "answer": answer} for question, answer in _problems(split, num_rows, seed)]


@lru_cache(maxsize=16)  # every stage of a plan reads them
def _problems(split: Split, num_rows: int, seed: int) -> tuple[tuple[str, str], ...]:
    rng = random.Random(f"plyfold-sandbox-teacher-{split}-{seed}")
    rows: list[tuple[str, str]] = []
    for story, _ in zip(draw_stories(split, seed), range(num_rows), strict=False):
        steps = story.solve()
        lines = note(steps, marks=True) if rng.random() < BRIEF else tell(steps, story, rng, marks=True)
        rows.append((story.question, "\n".join([*lines, f"#### {steps[-1].result}"])))
    return tuple(rows)
