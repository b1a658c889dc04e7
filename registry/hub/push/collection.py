"""The page that shows a curriculum on the Hub: a collection of the repositories of its stages and merges.

It is for people to look at. Nothing reads it back, and whatever goes wrong with it takes nothing from a push.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ....core.config import MAX_STAGE
from ....core.errors import PlyfoldError
from ...record import Record
from ..client import HubClient


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What became of a collection."""

    title: str
    slug: str | None = None
    """`acme/gsm8k-0123456789abcdef01234567`."""
    url: str | None = None
    added: tuple[str, ...] = ()
    """Repositories that were not in it."""
    fault: str = ""
    """Why it is not complete; empty when it is."""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def update_collection(
    client: HubClient, namespace: str, curriculum: str, published: Iterable[tuple[str, Record]], *, private: bool
) -> Collected:
    """List the repositories of a curriculum in a collection of its name, the base's first stage first.

    A collection that is there is added to; what people wrote in it stays.

    Args:
        client: How to reach the Hub.
        namespace: User or organisation.
        curriculum: Name of the curriculum, and so the title.
        published: (Hub id, record) of adapters that are there; those of other curricula are left out.
        private: For a collection that is made now.

    Returns:
        What was done, with a fault instead of an error.
    """
    own = [pair for pair in published if pair[1].curriculum == curriculum]
    own.sort(key=lambda pair: (_rank(pair[1]), pair[0]))
    added: list[str] = []
    slug = url = None
    try:
        there = client.collection(
            namespace, curriculum, private=private, description=f"The adapters of {curriculum}, in order of training."
        )
        slug, url = there.slug, there.url
        for repo, record in own:
            if repo not in there.repos and repo not in added:
                client.collect(slug, repo, note=collection_note(record))
                added.append(repo)
    except PlyfoldError as error:
        found = f" ({error.found})" if error.found else ""
        return Collected(title=curriculum, slug=slug, url=url, added=tuple(added), fault=f"{error.what}{found}")
    return Collected(title=curriculum, slug=slug, url=url, added=tuple(added))


def collection_note(record: Record) -> str:
    """What stands below a repository in the collection: `Stage 1, structure`."""
    if record.stage:
        return f"Stage {record.stage.number}, {record.stage.name}: a LoRA of rank {record.weights.r}"
    details = record.recipe.details
    if record.kind != "merge":
        return f"An adapter of another tool, of rank {record.weights.r}"
    of = f"Stages {details['variant']}" if "variant" in details else f"{len(record.parents)} adapters"
    return " ".join(f"{of} merged into one LoRA of rank {record.weights.r}, {details.get('method', 'exact')}".split())


def _rank(record: Record) -> tuple[int, str]:
    """Stages by number, then all else by age."""
    return (record.stage.number if record.stage else MAX_STAGE + 1), record.created
