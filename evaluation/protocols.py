"""Named ways to ask: a prompt template and where to stop. A score without its protocol means nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..core.disk.digest import digest_json
from ..core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a question becomes a prompt and when an answer has ended."""

    name: str
    """Name shown beside every score."""
    template: str
    """Prompt; `{question}` stands for the question."""
    stop: tuple[str, ...]
    """Strings that end a completion; they are cut from its text and counted in its tokens."""
    shots: int = 0
    """Solved examples in the prompt."""

    def prompt(self, question: str) -> str:
        """The prompt of one question. Braces in the question are left alone."""
        return self.template.replace("{question}", question.strip())

    def digest(self) -> str:
        """Digest of everything above: equal digests ask in the same way."""
        return digest_json(asdict(self))


PROTOCOLS = {
    "zero-shot": Protocol(
        name="zero-shot",
        template="Question: {question}\nSolution:\n",
        stop=("\nQuestion:",),
    ),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: No such protocol.
    """
    if name not in PROTOCOLS:
        raise ConfigError("no such protocol", found=name, expected=", ".join(sorted(PROTOCOLS)))
    return PROTOCOLS[name]
