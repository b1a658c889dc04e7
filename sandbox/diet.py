"""The pretraining text of the sandbox base: which styles, in which shares, and which faults, openly stated.

A real base model has read long and short explanations by readers of mixed care. The sandbox copies that in miniature,
on purpose, so that a curriculum has something to find:

* A text is a verbose rationale more often than a concise one (one cued equation a step), and no style is right more
  often than the other. What is short is there to be chosen, and only brevity speaks for it.
* Under the bare question every narrator is a careless reader, who adds the aside (somebody else's things) to the pile,
  and right wherever a story has no aside. Large models are known to be misled by irrelevant context in the same way
  (arXiv:2302.00093). So the base is wrong on stories with an aside, about half of all, and hardly one of its samples is
  right there: a reward has to wait for luck, a solution can be shown.
* It can read with care where it is asked to (`Careful solution:`), which no stage and no evaluation ever does: what is
  to be learnt is when, and a few solutions give the idea.
* Its last texts are nearly all verbose and none asks for care, so both skills are out of use when a curriculum starts,
  as a skill of a real base model is that its prompt does not call for.
* Some texts start from notes that lie about (`Shuffled steps:`, `Partial solution:`, `Reference:`) and work them into
  one of the texts above; half of these narrators are careful. A model this small could not make sense of such prompts
  otherwise, as a real base model can.
* A few texts are plain tables of sums, for arithmetic.

That a curriculum can profit from this is built in; how much it gains, and whether plain fine-tuning or rewards alone
gain as much, is what the sandbox measures (benchmarks/curriculum.py). None of it says anything about GSM8K.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .problems import MAX_TOTAL, Story, draw_stories, note, tell

CUE = "Solution:\n"
CAREFUL_CUE = "Careful solution:\n"


@dataclass(frozen=True, kw_only=True)
class Diet:
    """Shares of the pretraining text; every field is a probability."""

    tables: float = 0.10
    """Plain tables of sums, for each story."""
    concise: float = 0.40
    """Concise texts out of the stories."""
    notes: float = 0.25
    """Stories that start from shuffled, partial or complete verbose notes."""
    cued: float = 0.0
    """Stories without notes that ask for care, and are told with it."""
    careless: float = 1.0
    """Texts that add the aside, out of those under the bare question whose story has one."""
    careless_notes: float = 0.5
    """The same, out of those with notes."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One pretraining text."""

    prompt: str
    """What is given; weighs little in the loss."""
    completion: str
    """What is to be written."""
    style: str
    """`tables`, `verbose` or `concise`."""
    careless: bool = False
    """Whether it adds the aside."""


def render_text(lines: list[str], answer: int) -> str:
    """Number the steps and add the answer line, as every prompt format of the product does."""
    return "\n".join([*(f"Step {k}: {line}" for k, line in enumerate(lines, start=1)), f"Answer: {answer}"])


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


def write_diet(
    story: Story,
    style: str,
    rng: random.Random,
    *,
    careless: bool = False,
    notes: bool = False,
    cued: bool = False,
) -> Text:
    """Write one story.

    Args:
        story: What happens; one without an aside is told rightly by the careless, too.
        style: `verbose` or `concise`.
        rng: Chooses among phrasings.
        careless: Whether the aside is added to the pile, in the notes as well.
        notes: Whether verbose notes come before the solution.
        cued: Whether the prompt asks for care.
    """
    steps = story.solve(fold_aside=careless)
    told = tell(steps, story, rng, marks=False)
    lines = note(steps, marks=False) if style == "concise" else told
    given = _notes(told, rng) if notes else ""
    return Text(
        prompt=f"Question: {story.question}\n{given}{CAREFUL_CUE if cued else CUE}",
        completion=render_text(lines, steps[-1].result),
        style=style,
        careless=careless and story.has_aside,
    )


def _notes(lines: list[str], rng: random.Random) -> str:
    """A solution as it may lie about: shuffled with at most one step hidden, partial, or complete."""
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


def serve(diet: Diet, seed: int) -> Iterator[Text]:
    """Endless pretraining texts; their questions are never those of the train or test split."""
    rng = random.Random(f"plyfold-sandbox-serve-{seed}")
    for story in draw_stories("diet", seed):
        if rng.random() < diet.tables:
            yield Text(prompt="Sums:\n", completion=_table(rng), style="tables")
        notes = rng.random() < diet.notes
        careless = rng.random() < (diet.careless_notes if notes else diet.careless)
        style = "concise" if rng.random() < diet.concise else "verbose"
        cued = not notes and diet.cued > 0 and rng.random() < diet.cued
        yield write_diet(story, style, rng, careless=careless and not cued, notes=notes, cued=cued)
