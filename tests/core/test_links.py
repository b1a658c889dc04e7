"""Links that a stranger has laid in a registry, a cache or a run folder: named and refused, nothing reached by them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from plyfold.adapters.base.resolve import BaseRef, Quantisation
from plyfold.cli.main import run
from plyfold.core.disk.digest import sha256_bytes, short
from plyfold.core.disk.files import staged_folder, sweep_staged
from plyfold.core.disk.links import open_log, open_own, refuse_links_in
from plyfold.core.disk.locks import file_lock
from plyfold.core.errors import IntegrityError
from plyfold.merge.fold.journal import resumable_folder
from plyfold.registry.maintenance.gc import GRACE_S, delete
from plyfold.registry.store import Store
from plyfold.stages.training.run_folder import RunFolder
from plyfold.variants import materialise, parse_variant

DIGEST = "0" * 64
FOLDERS = (
    "tmp", "refs", "refs/tiny", "refs/tiny/1", "refs/other", "attest", f"attest/{DIGEST}", "objects", "objects/sha256",
    "locks", "locks/leases", "cache", "cache/twins", "cache/variants", "cache/serve", "cache/twins/base-0123456789ab",
    "cache/variants/tiny-s1-0123456789abcdef",
)  # fmt: skip
FILES = (
    "log.jsonl", "locations.json", "locks/refs.lock", f"locks/leases/{'0' * 32}.json", "refs/tiny/1/latest",
    f"attest/{DIGEST}/0123456789abcdef.json", "cache/serve/8000.log", "cache/twins/.base-0123456789ab.lock",
    "cache/variants/.tiny-s1-0123456789abcdef.lock", "cache/variants/tiny-s1-0123456789abcdef.json",
    "cache/twins/base-0123456789ab/model.safetensors",
)  # fmt: skip
COMMANDS = (["tree"], ["verify"], ["pin", "1"], ["merge", "--stages", "1"], ["gc", "--delete"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, make_store: Any, tiny_base: Any) -> Path:
    root = tmp_path_factory.mktemp("template") / ".plyfold"
    make_store(root, tiny_base(dtype="float32"), stages=1)
    return root


@pytest.fixture
def registry(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copytree(template, project / ".plyfold")
    return project / ".plyfold"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody's work, all of it old."""
    folder = tmp_path / "victim"
    (folder / "thesis").mkdir(parents=True)
    for name in ("thesis/chapter1.txt", "notes.txt", ".bashrc", ".latest.original", "publish-_thesis_", "8000.log"):
        (folder / name).write_text("work")
    age(folder)
    return folder


def age(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - 2 * GRACE_S,) * 2, follow_symlinks=False)


def seen(folder: Path) -> list[tuple[str, int, bytes]]:
    return sorted(
        (path.name, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    )


def plant(link: Path, target: Path) -> None:
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize("place", [*FOLDERS, *FILES])
def test_a_link_in_a_registry_is_named_and_nothing_is_reached_by_it(
    registry: Path, victim: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(registry / place, victim / "notes.txt" if place in FILES else victim)
    before = seen(victim), seen(registry)
    for command in COMMANDS:
        assert run(command) == 4, command
        said = capsys.readouterr().err
        assert f"{registry / place}" in said.replace("\n            ", "")
        assert "a link" in said
    assert (seen(victim), seen(registry)) == before


def test_a_link_to_a_registry_is_its_owners_choice(registry: Path, tmp_path: Path) -> None:
    registry.rename(tmp_path / "elsewhere")
    registry.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "way").symlink_to(tmp_path)
    assert run(["tree"]) == run(["tree", "--registry", str(tmp_path / "way" / "elsewhere")]) == 0


def test_an_object_that_is_a_link_is_damaged(registry: Path, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(registry)
    (digest,) = store.digests()
    path = store.objects / digest.removeprefix("sha256:")
    path.rename(victim / "adapter")
    path.symlink_to(victim / "adapter")
    age(victim)
    before = seen(victim)
    with pytest.raises(IntegrityError, match="a link"):
        store.load(digest)
    assert run(["verify"]) == 4
    said = capsys.readouterr().out
    assert path.name[:12] in said
    assert "a link" in said
    shutil.rmtree(registry / "refs" / "tiny")
    delete(store, grace_s=-1.0)
    assert not os.path.lexists(path)
    assert seen(victim) == before


def test_what_is_no_folder_or_file_is_named(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, make in (("tmp", "file"), ("refs", "file"), ("log.jsonl", "folder"), ("locks/refs.lock", "pipe")):
        path, aside = registry / place, registry.parent / "aside"
        path.rename(aside)
        if make == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir() if make == "folder" else path.write_text("")
        assert run(["pin", "1"]) == 4, place
        assert str(path) in capsys.readouterr().err.replace("\n            ", "")
        path.rmdir() if make == "folder" else path.unlink()
        aside.rename(path)
    assert run(["pin", "1"]) == 0


def test_a_sweep_takes_only_names_that_plyfold_makes(registry: Path) -> None:
    names = (
        "tmp/notes.txt", "tmp/.env", "tmp/publish-notes.txt", "tmp/thesis/chapter1.txt", "cache/twins/mine/notes.txt",
        "cache/variants/.mine.tmp-original/notes.txt", "cache/serve/notes.log", "cache/serve/.8000.log",
        "locks/leases/notes.json", "refs/tiny/1/.notes.original", "refs/.netrc", "attest/.env",
    )  # fmt: skip
    for name in names:
        (registry / name).parent.mkdir(parents=True, exist_ok=True)
        (registry / name).write_text("work")
    made = ("tmp/publish-abcdefgh/x", "tmp/gc-012345678901-01234567/x", "cache/serve/8000.log",
            "cache/twins/base-0123456789ab/x", "refs/tiny/1/.latest.part-0123456789ab")  # fmt: skip
    for name in made:
        (registry / name).parent.mkdir(parents=True, exist_ok=True)
        (registry / name).write_text("plyfold's")
    age(registry / "tmp")
    for name in ("cache", "refs", "attest", "locks"):
        age(registry / name)
    assert run(["gc", "--delete"]) == 0
    assert [name for name in names if not (registry / name).exists()] == []
    assert [name for name in made if (registry / name).exists()] == []


def test_what_lies_beside_an_output_is_swept_by_plyfolds_names_only(tmp_path: Path, victim: Path) -> None:
    mine = [
        ".out.tmp-original",
        ".out.tmp-",
        ".out.old-backup",
        ".out.tmp-0123456789ab.keep",
        ".other.tmp-0123456789ab",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("work")
    (tmp_path / ".out.tmp-0123456789ab").symlink_to(victim)
    (tmp_path / ".out.tmp-aaaaaaaaaaaa").mkdir()
    before = seen(victim)
    with staged_folder(tmp_path / "out"):
        pass
    assert seen(victim) == before
    assert (tmp_path / ".out.tmp-0123456789ab").is_symlink()
    assert not (tmp_path / ".out.tmp-aaaaaaaaaaaa").exists()
    assert [name for name in mine if not (tmp_path / name / "x").exists()] == []


@pytest.mark.parametrize("place", ["", "data", ".journal"])
def test_a_half_made_fold_that_is_a_link_or_holds_one_is_refused(tmp_path: Path, victim: Path, place: str) -> None:
    key = sha256_bytes(b"key")
    folder = tmp_path / f".out.fold-{short(key)}"
    plant(folder / place, victim / "notes.txt" if place else victim)
    before = seen(victim)
    with pytest.raises(IntegrityError, match="a link"), resumable_folder(tmp_path / "out", key, keep=["data"]):
        pass
    assert seen(victim) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_half_made_fold_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f".out.fold-{short(sha256_bytes(b'key'))}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with (
        pytest.raises(IntegrityError, match="another user"),
        resumable_folder(tmp_path / "out", sha256_bytes(b"key"), keep=[]),
    ):
        pass
    assert folder.is_dir()


@pytest.mark.parametrize("place", ["", "tiny", "tiny/1-one", "tiny/1-one/checkpoints", "tiny/1-one/metrics.jsonl"])
def test_a_run_folder_with_a_link_is_not_trained_in(tmp_path: Path, victim: Path, place: str) -> None:
    plant(tmp_path / "runs" / place, victim / "notes.txt" if place.endswith("jsonl") else victim)
    before = seen(victim)
    folder = RunFolder(path=tmp_path / "runs/tiny/1-one", fingerprint=f"sha256:{DIGEST}", processes=1)
    if not place:  # the user's own choice of a disk
        with folder.held():
            return
    with pytest.raises(IntegrityError, match="a link"), folder.held():
        pass
    assert seen(victim) == before


def test_a_log_is_a_new_file_and_never_a_link(tmp_path: Path, victim: Path) -> None:
    before = seen(victim)
    os.link(victim / "notes.txt", tmp_path / "1.log")
    for name in ("1.log", "2.log", "2.log", "new/3.log"):
        with open_log(tmp_path / name) as log:
            log.write(b"said")
        assert (tmp_path / name).read_bytes() == b"said"
    for link, target in (("4.log", victim / "8000.log"), ("5.log", victim / "new.log"), ("there", victim)):
        (tmp_path / link).symlink_to(target)
        with pytest.raises(IntegrityError, match="a link"):
            open_log(tmp_path / link / "1.log" if link == "there" else tmp_path / link)
    assert seen(victim) == before


def test_a_lock_is_never_a_link_and_keeps_its_bytes(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".a.lock").symlink_to(victim / "notes.txt")
    with pytest.raises(IntegrityError, match="a link"), file_lock(tmp_path / "a", ""):
        pass
    os.link(victim / "notes.txt", tmp_path / ".b.lock")
    with file_lock(tmp_path / "b", ""):
        pass
    assert (victim / "notes.txt").read_text() == "work"


@pytest.mark.slow
def test_links_are_found_however_deep(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1200):
        deep = deep / "d"
        os.mkdir(deep)
    refuse_links_in(tmp_path)
    (deep / "l").symlink_to("nowhere")
    with pytest.raises(IntegrityError):
        refuse_links_in(tmp_path)
    refuse_links_in(tmp_path, depth=5)
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "nothing")
    while deep != tmp_path:
        for path in deep.iterdir():
            path.unlink() if path.is_symlink() else path.rmdir()
        deep = deep.parent


def test_a_variant_and_a_twin_are_not_made_through_a_link(registry: Path, victim: Path) -> None:
    """Laid after the registry was opened: the lock beside, and the entry itself."""
    from plyfold.adapters.base.twin import ensure_twin, twin_path

    store = Store(registry)
    variant = parse_variant("1", "tiny")
    path = materialise(store, variant).path
    assert path is not None
    lock = path.parent / f".{path.name}.lock"
    plant(lock, victim / "notes.txt")
    before = seen(victim)
    with pytest.raises(IntegrityError, match="a link"):
        materialise(store, variant)
    lock.unlink()
    base = BaseRef(repo="a/b", revision="0" * 40, path=victim)
    twin = twin_path(base, Quantisation(), registry / "cache")
    plant(twin.parent / f".{twin.name}.lock", victim / "notes.txt")
    with pytest.raises(IntegrityError, match="a link"):
        ensure_twin(base, Quantisation(), registry / "cache")
    sweep_staged(twin)
    assert seen(victim) == before
