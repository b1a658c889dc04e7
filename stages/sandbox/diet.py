"""The pretraining text of the sandbox base: which styles, in which shares, and which faults, openly stated.

A real base model has read long explanations of mixed quality and fewer short, exact ones. The sandbox copies that in
miniature, on purpose, so that a curriculum has something to find:

* Left free (`Solution:`), a text is a verbose rationale nearly always and a concise one seldom.
* Verbose narrators are careless readers: most of them add the aside (somebody else's things) to the pile. They are
  right wherever a story has no aside. Large models are known to be misled by irrelevant context in the same way
  (arXiv:2302.00093).
* Concise narrators write one cued equation a step and ignore the aside. Their skill is practised mostly under another
  cue (`Notes:`), which no stage and no evaluation ever uses.
* A few texts are plain tables of sums, for arithmetic.
* In a short second course, some texts start from notes that lie about (`Shuffled steps:`, `Partial solution:`,
  `Reference:`) and work them into one of the texts above, by the same narrators with the same faults. A model this
  small could not make sense of such prompts otherwise, as a real base model can.

So the base is wrong on most stories with an aside, and its short style is both rarer and better than its long one.
That a curriculum can profit from this is built in; how much it gains, and whether plain fine-tuning gains as much, is
what the sandbox measures. None of it says anything about GSM8K.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .problems import MAX_TOTAL, Step, Story, draw_stories, tell

FREE_CUE = "Solution:\n"
NOTES_CUE = "Notes:\n"


@dataclass(frozen=True, kw_only=True)
class Diet:
    """Shares of the pretraining text; every field is a probability."""

    tables: float = 0.10
    """Texts that are plain tables of sums."""
    notes: float = 0.40
    """Stories answered concisely under the `Notes:` cue, out of those texts that are not tables."""
    free_concise: float = 0.10
    """Concise texts out of those under the free cue."""
    careless: float = 0.85
    """Verbose texts that add the aside, out of those whose story has one."""
    drafts: float = 0.0
    """Texts under the free cue that start from shuffled, partial or complete verbose notes."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One pretraining text."""

    prompt: str
    """What is given; weighs little in the loss."""
    completion: str
    """What is to be written."""
    style: str
    """`tables`, `notes`, `concise`, `careful` or `careless`."""


def render(lines: list[str], answer: int) -> str:
    """Number the steps and add the answer line, as every prompt format of the product does."""
    return "\n".join([*(f"Step {k}: {line}" for k, line in enumerate(lines, start=1)), f"Answer: {answer}"])


def concise(steps: tuple[Step, ...]) -> list[str]:
    """One cued equation a step, e.g. `buys 24+12=36`."""
    return [f"{step.cue} {step.equation}" for step in steps]


def _table(rng: random.Random) -> str:
    """Eight sums of the kinds that stories use."""
    lines = []
    for _ in range(8):
        match rng.choice("++--*/x"):
            case "+":
                left = rng.randint(2, MAX_TOTAL - 2)
                right = rng.randint(2, min(70, MAX_TOTAL - left))
                lines.append(f"{left}+{right}={left + right}")
            case "-":
                left = rng.randint(4, MAX_TOTAL)
                right = rng.randint(2, min(70, left - 1))
                lines.append(f"{left}-{right}={left - right}")
            case "*":
                left, right = rng.randint(2, 6), rng.randint(2, 9)
                lines.append(f"{left}*{right}={left * right}")
            case "/":
                half = rng.randint(1, MAX_TOTAL // 2)
                lines.append(f"{2 * half}/2={half}")
            case _:
                times = rng.randint(2, 3)
                left = rng.randint(2, MAX_TOTAL // times)
                lines.append(f"{left}*{times}={left * times}")
    return "\n".join(lines)


def write(story: Story, style: str, rng: random.Random) -> Text:
    """Write one story in one style (`notes`, `concise`, `careful` or `careless`)."""
    steps = story.solve(fold_aside=style == "careless")
    short = style in ("notes", "concise")
    lines = concise(steps) if short else tell(steps, story, rng, marks=False)
    cue = NOTES_CUE if style == "notes" else FREE_CUE
    return Text(prompt=f"Question: {story.question}\n{cue}", completion=render(lines, steps[-1].result), style=style)


def _draft(lines: list[str], rng: random.Random) -> str:
    """Notes of a solution: shuffled with at most one step hidden, partial, or complete."""
    kind = rng.choice(("Shuffled steps:", "Partial solution:", "Reference:"))
    if kind == "Shuffled steps:":
        shown = lines.copy()
        if rng.random() < 0.7:
            shown[rng.randrange(len(shown))] = "[MASK]"
        rng.shuffle(shown)
        return f"{kind}\n" + "".join(f"- {line}\n" for line in shown)
    num_hidden = rng.randint(1, len(lines) - 1) if kind == "Partial solution:" else 0
    hidden = set(rng.sample(range(len(lines)), num_hidden))
    shown = ["[MASK]" if index in hidden else line for index, line in enumerate(lines)]
    return f"{kind}\n" + "".join(f"Step {k}: {line}\n" for k, line in enumerate(shown, start=1))


def _with_draft(story: Story, text: Text, rng: random.Random) -> Text:
    """The same text with notes by a narrator who reads as carefully as its own."""
    steps = story.solve(fold_aside=text.style == "careless")
    lines = tell(steps, story, rng, marks=False)
    if text.style != "concise":
        lines = [line.partition(": ")[2] for line in text.completion.splitlines()[:-1]]
    prompt = f"Question: {story.question}\n{_draft(lines, rng)}{FREE_CUE}"
    return Text(prompt=prompt, completion=text.completion, style=text.style)


def serve(diet: Diet, seed: int) -> Iterator[Text]:
    """Endless pretraining texts; their questions are never those of the train or test split."""
    rng = random.Random(f"plyfold-sandbox-serve-{seed}")
    for story in draw_stories("diet", seed):
        if rng.random() < diet.tables:
            yield Text(prompt="Sums:\n", completion=_table(rng), style="tables")
        if rng.random() < diet.notes:
            yield write(story, "notes", rng)
            continue
        style = "careful"
        if rng.random() < diet.free_concise:
            style = "concise"
        elif story.has_aside and rng.random() < diet.careless:
            style = "careless"
        text = write(story, style, rng)
        yield _with_draft(story, text, rng) if diet.drafts and rng.random() < diet.drafts else text
