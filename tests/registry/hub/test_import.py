"""import from a Hub on a local port: only the two files of an adapter, as the commit lists them, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plyfold.cli.main import run
from plyfold.core.errors import (
    AuthError,
    ConfigError,
    ConflictError,
    IntegrityError,
    NotAllowedError,
    NotFoundError,
    OfflineError,
    PlyfoldError,
    UnsupportedAdapterError,
)
from plyfold.registry.hub import import_hub
from plyfold.registry.hub.client import HubClient
from plyfold.registry.hub.import_hub import Imported, import_from_hub, licence_stated
from plyfold.registry.hub.places import locations
from plyfold.registry.hub.push.push import pull, push
from plyfold.registry.import_peft import import_adapter
from plyfold.registry.lineage.lockfile import make_lock
from plyfold.registry.store import Store

from ...conftest import Hub, MakeAdapter
from .conftest import is_empty

REPO = "alice/Their_LoRA"
CARD = b"---\nlicense: other\nlicense_name: qwen-research\n---\n# Theirs\n"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Upload = Callable[..., str]
Import = Callable[..., Imported]


@pytest.fixture
def theirs(tmp_path: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(tmp_path / "theirs", seed=7)


@pytest.fixture
def upload(hub: Hub, client: HubClient) -> Upload:
    """Commits files to `REPO` and returns the commit."""

    def commit(files: dict[str, Any]) -> str:
        client.create_repo(REPO, private=False)
        sha = client.commit(REPO, files, parent=client.refs(REPO).branches["main"], title="upload", description="")
        hub.log.clear()
        return sha

    return commit


@pytest.fixture
def published(upload: Upload, theirs: Path) -> str:
    """Their adapter with a card, a picture and a training state beside it."""
    files: dict[str, Any] = {name: theirs / name for name in (CONFIG, WEIGHTS)}
    return upload({**files, "README.md": CARD, "loss.png": b"x", "optimizer.pt": b"pickle"})


@pytest.fixture
def take(away: Store, client: HubClient) -> Import:
    def imported(ref: str = f"hf://{REPO}", **said: Any) -> Imported:
        return import_from_hub(away, ref, client=client, **{"curriculum": "mix", **said})

    return imported


def fetched(hub: Hub) -> list[str]:
    """Paths whose contents were asked for."""
    return [str(request).partition("/resolve/")[2].partition("/")[2] for request in hub.seen("/resolve/")]


def test_it_comes_as_a_folder_does_and_says_from_where(
    hub: Hub, published: str, theirs: Path, take: Import, away: Store, client: HubClient
) -> None:
    done = take()
    assert sorted(fetched(hub)) == ["README.md", CONFIG, WEIGHTS]
    assert (done.location, done.fetched) == (f"hf://{REPO}@{published}", True)
    record = done.entry.record
    assert (record.kind, record.licence, record.recipe.details) == (
        "foreign",
        "qwen-research",
        {"provenance": "unknown", "name": "their_lora"},
    )
    assert away.merges("mix") == {"their_lora": done.entry.digest}
    assert locations(away, done.entry.digest) == [done.location]
    local = import_adapter(away, theirs, curriculum="mix", name="local")
    assert [file.sha256 for file in local.record.files] == [file.sha256 for file in record.files]
    assert not list((away.root / "tmp").iterdir())
    staged = take(stage=4, licence="mit")
    assert (staged.entry.record.licence, staged.fetched) == ("mit", False)
    assert make_lock(away, "mix").stages[4].location == done.location


def test_what_was_imported_is_not_asked_for_again(
    hub: Hub, published: str, take: Import, monkeypatch: pytest.MonkeyPatch, away: Store
) -> None:
    first = take()
    hub.log.clear()
    again = take(f"hf://{REPO}@{published}")
    assert (again.entry, again.fetched) == (first.entry, False)
    assert not hub.log
    assert take().entry == first.entry
    assert not fetched(hub)
    hub.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert take().entry == first.entry
    other = take(name="other").entry
    assert (other.record.weights, other.record.licence) == (first.entry.record.weights, "qwen-research")
    assert not hub.log
    for ref in ("hf://alice/unseen", f"hf://alice/unseen@{'1' * 40}"):
        with pytest.raises(OfflineError, match="switched off"):
            take(ref)
    assert len(away.digests()) == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({WEIGHTS: None, "adapter_model.bin": b"pickle"}, UnsupportedAdapterError, ["pickle", "save_pretrained"]),
        ({WEIGHTS: None}, NotFoundError, [WEIGHTS]),
        ({CONFIG: None}, NotFoundError, [CONFIG]),
        ({"lineage.json": b"{}"}, ConfigError, ["plyfold pull hf://alice/Their_LoRA@"]),
        ({CONFIG: {"revision": None}}, ConfigError, ["--base ORG/MODEL@COMMIT"]),
        ({CONFIG: {"base_model_name_or_path": "/home/alice/base"}}, ConfigError, ["--base ORG/MODEL@COMMIT"]),
        ({CONFIG: {"use_dora": True}}, UnsupportedAdapterError, ["use_dora"]),
        ({CONFIG: b"[" * 9000}, IntegrityError, ["not JSON"]),
    ],
)
def test_what_cannot_be_taken_is_refused_before_the_weights(
    hub: Hub,
    upload: Upload,
    theirs: Path,
    take: Import,
    away: Store,
    change: dict[str, Any],
    error: type[PlyfoldError],
    words: list[str],
) -> None:
    files: dict[str, Any] = {name: (theirs / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for name, value in change.items():
        files[name] = json.dumps({**json.loads(files[CONFIG]), **value}).encode() if isinstance(value, dict) else value
    upload({name: value for name, value in files.items() if value is not None})
    with pytest.raises(error) as caught:
        take()
    assert all(word in str(caught.value) for word in words)
    assert WEIGHTS not in fetched(hub)
    assert is_empty(away)


def test_the_user_knows_the_base(upload: Upload, theirs: Path, take: Import) -> None:
    config = {**json.loads((theirs / CONFIG).read_bytes()), "revision": None}
    upload({CONFIG: json.dumps(config).encode(), WEIGHTS: theirs / WEIGHTS})
    record = take(base=f"acme/known@{'c' * 40}", quantisation="nf4").entry.record
    assert (record.base.repo, record.base.revision) == ("acme/known", "c" * 40)
    assert (record.base.quantisation or {})["quant_type"] == "nf4"
    assert record.licence == "unknown"  # there is no card


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (CARD, "qwen-research"),
        (b"---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        (b"---\nlicense: [a, b]\n---\n", None),
        (b"---\n{{{\n---\n", None),
        (b"---\n" + b"[" * 9000 + b"\n---\n", None),
        (b"\xff", None),
        (b"---\nlicense: /etc\n---\n", None),
        (b"no front matter", None),
    ],
)
def test_a_card_says_a_licence_or_nothing(tmp_path: Path, card: bytes, licence: str | None) -> None:
    (tmp_path / "README.md").write_bytes(card)
    assert licence_stated(tmp_path / "README.md") == licence


def test_names_that_are_taken_or_unfit_are_refused_before_the_weights(
    hub: Hub, published: str, take: Import, away: Store, theirs: Path, make_record: Any
) -> None:
    away.set_ref("toy", 1, away.publish(theirs, make_record(1)))
    with pytest.raises(ConflictError, match="that stage"):
        take(curriculum="toy", stage=1)
    with pytest.raises(ConfigError, match="name"):
        take(name="../up")
    assert not fetched(hub)
    assert list(away.stages("toy")) == [1]


def test_a_folder_of_a_repository(hub: Hub, upload: Upload, theirs: Path, take: Import) -> None:
    sha = upload({f"runs/best/{name}": theirs / name for name in (CONFIG, WEIGHTS)})
    with pytest.raises(NotFoundError, match=f"plyfold import hf://{REPO}@{sha}/runs/best"):
        take()
    done = take(f"hf://{REPO}@{sha}/runs/best")
    assert done.location == f"hf://{REPO}@{sha}/runs/best"
    assert done.entry.record.recipe.details["name"] == "best"
    with pytest.raises(NotFoundError):
        take(f"hf://{REPO}@{sha}/runs/worst")


@pytest.mark.parametrize("file", [CONFIG, f"/_lfs/.*{WEIGHTS}", "README.md"])
@pytest.mark.parametrize("kind", ["flip", "truncate", "500", "drop_before", "drop_after"])
def test_one_fault_on_the_way_is_mended(hub: Hub, published: str, take: Import, file: str, kind: str) -> None:
    fault = hub.fault(f"GET .*{file}", kind)
    assert take().entry.record.licence == "qwen-research"
    assert fault.hits == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("flip", IntegrityError),
        ("truncate", OfflineError),
        ("503", OfflineError),
        ("401", AuthError),
        ("403", AuthError),
    ],
)
@pytest.mark.parametrize("file", [CONFIG, f"/_lfs/.*{WEIGHTS}"])
def test_a_lasting_fault_leaves_nothing(
    hub: Hub, published: str, take: Import, away: Store, file: str, kind: str, error: type[PlyfoldError]
) -> None:
    hub.fault(f"GET .*{file}", kind, None)
    with pytest.raises(error) as caught:
        take()
    assert hub.token not in str(caught.value)
    assert is_empty(away)


def test_more_bytes_than_listed_are_not_read(hub: Hub, published: str, take: Import, away: Store) -> None:
    path = hub.store.content_path(hub.store.entry(REPO, published, WEIGHTS))
    path.write_bytes(path.read_bytes() + b"x" * 5_000_000)
    with pytest.raises(IntegrityError, match="not what the Hub lists"):
        take()
    assert is_empty(away)


def test_more_than_an_adapter_is_not_fetched(
    hub: Hub, published: str, take: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_hub, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(IntegrityError, match="too large"):
        take()
    assert WEIGHTS not in fetched(hub)


def test_a_repository_that_is_not_there_or_not_for_this_token(hub: Hub, published: str, take: Import) -> None:
    with pytest.raises(NotFoundError):
        take("hf://alice/nothing")
    with pytest.raises(NotFoundError):
        take(f"hf://{REPO}@v9")
    hub.store.configure(REPO, gated=True)
    hub.fault("/refs", "401", None)
    with pytest.raises(AuthError):
        take()


def test_the_command(
    hub: Hub, client: HubClient, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(["import", f"hf://{REPO}", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["location"], value["fetched"]) == (f"hf://{REPO}@{published}", True)
    assert run(["import", f"hf://{REPO}"]) == 0
    assert "qwen-research" in capsys.readouterr().out
    assert run(["show", "their_lora"]) == 0
    assert value["location"] in capsys.readouterr().out
    assert run(["import", "hf://alice/nothing"]) == 3
    assert run(["import", "ftp://alice/nothing"]) == 2


def test_a_registry_that_may_only_be_read(
    hub: Hub, store: Store, away: Store, client: HubClient, published: str, take: Import, capsys: Any
) -> None:
    """push works and says what it could not note; what would write is refused before the Hub is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "writable", False)
        hub.log.clear()
        with pytest.raises(NotAllowedError, match="cannot be written"):
            take()
        assert not hub.log
        (done,) = push(store, [store.ref("toy", 1)], "acme", client=client)
        assert f"lies at {done.location} is not noted" in capsys.readouterr().err
        with pytest.raises(NotAllowedError, match="cannot be written"):
            pull(away, str(done.location), client=client)
    assert locations(store, done.digest) == []
    assert pull(away, str(done.location), client=client)[0].digest == done.digest
