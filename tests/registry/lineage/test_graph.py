"""Lineage: the tree, what is stale, chains, verification, and which scores belong to what."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from plyfold.core.errors import ConfigError, IntegrityError, NotFoundError
from plyfold.registry.lineage.graph import TreeNode, chain, find, stale, tree
from plyfold.registry.lineage.scores import attest_scores, scores
from plyfold.registry.maintenance.verify import verify
from plyfold.registry.record import Metric, Parent, Recipe
from plyfold.registry.store import Store, find_store


class Toy:
    """A store with a curriculum of three stages, the second and third trained on all before them."""

    def __init__(self, root: Path, make_record: Any) -> None:
        self.store: Store = find_store(root / ".plyfold", create=True)
        self.folder = root / "adapter"
        self.folder.mkdir()
        (self.folder / "adapter_config.json").write_text("{}")
        self.make_record = make_record
        self.one = self.stage(1, "structure", [])
        self.two = self.stage(2, "brevity", [self.one])
        self.three = self.stage(3, "remedy", [self.one, self.two])

    def stage(self, number: int, name: str, parents: list[str], **fields: Any) -> str:
        digest = self.store.publish(self.folder, self.make_record(number, name, parents, **fields))
        self.store.set_ref("toy", number, digest)
        return digest

    def merge(self, slug: str, parents: list[str], **fields: Any) -> str:
        digest = self.store.publish(self.folder, self.make_record(None, parents=parents, **fields))
        self.store.set_ref("toy", "merges", digest, slug)
        return digest

    def remove(self, digest: str) -> None:
        shutil.rmtree(self.store.objects / digest.removeprefix("sha256:"))


@pytest.fixture
def toy(tmp_path: Path, make_record: Any) -> Toy:
    return Toy(tmp_path, make_record)


def shape(node: TreeNode) -> Any:
    return {node.label: [shape(child) for child in node.children]} if node.children else node.label


def nodes(root: TreeNode) -> dict[str, TreeNode]:
    found = {root.label: root}
    for child in root.children:
        found |= nodes(child)
    return found


def accuracy(value: float) -> list[Metric]:
    return [Metric(name="accuracy", value=value, n=100, ci95=(value - 0.1, value + 0.1))]


class TestTree:
    def test_base_then_stages_then_merges(self, toy: Toy) -> None:
        toy.merge("toy-s1.s2", [toy.one, toy.two])
        toy.merge("toy-s1.s2.s3", [toy.one, toy.two, toy.three])
        assert shape(tree(toy.store, "toy")) == {
            "toy": [
                {"acme/tiny-qwen2": [{"1 structure": [{"2 brevity": [{"3 remedy": ["toy-s1.s2.s3"]}, "toy-s1.s2"]}]}]}
            ]
        }
        assert [node.marks for node in nodes(tree(toy.store, "toy")).values()] == [[]] * 7

    def test_json_names_whole_digests(self, toy: Toy) -> None:
        value = tree(toy.store, "toy").to_json()
        stage = value["children"][0]["children"][0]
        assert stage["digest"] == toy.one
        assert stage["children"][0]["parents"] == [{"role": "active_during_training", "digest": toy.one, "scale": 1.0}]

    def test_a_missing_object_is_marked_and_its_stages_stay_below(self, toy: Toy) -> None:
        toy.remove(toy.two)
        found = nodes(tree(toy.store, "toy"))
        assert found["2"].marks == ["missing"]
        assert found["2"].digest == toy.two
        assert [child.label for child in found["2"].children] == ["3 remedy"]
        assert [child.label for child in found["1 structure"].children] == ["2"]

    def test_a_damaged_object_is_marked(self, toy: Toy) -> None:
        path = toy.store.load(toy.two).path
        (path / "surprise").write_text("")
        assert nodes(tree(toy.store, "toy"))["2 brevity"].marks == ["damaged: surprise is not in the record"]
        (path / "lineage.json").chmod(0o644)
        (path / "lineage.json").write_text("{}")
        assert nodes(tree(toy.store, "toy"))["2"].marks[0].startswith("damaged: the record is not the one")

    def test_two_bases_are_two_branches(self, toy: Toy) -> None:
        toy.stage(4, "odd", [], base={"repo": "acme/other", "revision": "1" * 40})
        assert [child.label for child in tree(toy.store, "toy").children] == ["acme/tiny-qwen2", "acme/other"]

    def test_an_unknown_curriculum_lists_the_known(self, toy: Toy) -> None:
        with pytest.raises(NotFoundError) as caught:
            tree(toy.store, "joy")
        assert caught.value.expected == "one of toy"


class TestStale:
    def test_fresh_stages_are_not(self, toy: Toy) -> None:
        assert stale(toy.store, "toy") == {}

    def test_training_a_stage_again_outdates_what_was_trained_on_it(self, toy: Toy) -> None:
        toy.merge("toy-s1.s2", [toy.one, toy.two])
        toy.stage(1, "structure", [], licence="mit")
        reasons = stale(toy.store, "toy")
        assert list(reasons) == [2, 3]
        assert toy.one[7:19] in reasons[2][0]
        assert any("stage 2 is stale" in reason for reason in reasons[3])
        marks = {label: node.marks for label, node in nodes(tree(toy.store, "toy")).items()}
        assert marks["1 structure"] == []
        assert marks["3 remedy"][0].startswith("stale: ")
        assert marks["toy-s1.s2"][0].startswith("stale: made of")

    def test_the_last_stage_outdates_nothing(self, toy: Toy) -> None:
        toy.stage(3, "remedy", [toy.one, toy.two], licence="mit")
        assert stale(toy.store, "toy") == {}

    def test_another_wanted_configuration_does(self, toy: Toy) -> None:
        have, other = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
        toy.stage(3, "remedy", [toy.one, toy.two], recipe=Recipe(config_digest=have))
        assert stale(toy.store, "toy", {3: have}) == {}
        assert stale(toy.store, "toy", {3: other}) == {3: ["its configuration has changed"]}
        assert list(stale(toy.store, "toy", {2: have})) == [2, 3]  # 2 recorded none; 3 stands on it

    def test_missing_and_damaged_stages_are_stale(self, toy: Toy) -> None:
        toy.remove(toy.one)
        assert stale(toy.store, "toy") == {
            1: ["its files are not in the registry"],
            2: ["stage 1 is stale"],
            3: ["stage 1 is stale", "stage 2 is stale"],
        }

    def test_a_parent_nobody_knows(self, toy: Toy) -> None:
        toy.stage(2, "brevity", [f"sha256:{'e' * 64}"])
        assert "no stage here" in stale(toy.store, "toy")[2][0]


class TestChain:
    def test_children_come_before_their_parents(self, toy: Toy) -> None:
        merge = toy.merge("toy-s1.s3", [toy.three, toy.one])
        assert [link.digest for link in chain(toy.store, merge)] == [merge, toy.three, toy.two, toy.one]
        assert [link.role for link in chain(toy.store, toy.two)] == ["self", "active_during_training"]

    def test_a_missing_ancestor_is_listed(self, toy: Toy) -> None:
        toy.remove(toy.one)
        links = chain(toy.store, toy.three)
        assert [(link.digest, link.entry is None) for link in links] == [
            (toy.three, False),
            (toy.two, False),
            (toy.one, True),
        ]
        with pytest.raises(NotFoundError):
            chain(toy.store, toy.one)


class TestFind:
    def test_every_way_to_name_an_adapter(self, toy: Toy) -> None:
        merge = toy.merge("toy-s1.s2", [toy.one, toy.two])
        names = {"1": toy.one, "brevity": toy.two, "toy:3": toy.three, "toy-s1.s2": merge, toy.two[:20]: toy.two}
        for name, digest in {**names, toy.one[7:27]: toy.one, toy.one: toy.one}.items():
            assert find(toy.store, name).digest == digest, name

    def test_a_digest_needs_no_curriculum_where_there_are_several(
        self, toy: Toy, make_record: Any, make_adapter: Any, tmp_path: Path
    ) -> None:
        other = toy.store.publish(make_adapter(tmp_path / "joy"), make_record(1, "structure", [], curriculum="joy"))
        toy.store.set_ref("joy", 1, other)
        for name in (toy.one, toy.one[:20], toy.one[7:27]):
            assert find(toy.store, name).digest == toy.one, name
        for name in ("1", "structure", "ffffffff"):
            with pytest.raises(ConfigError, match="several curricula"):
                find(toy.store, name)

    def test_what_is_not_there_lists_the_stages(self, toy: Toy) -> None:
        for name in ("4", "nope", "toy:nope", "ffffffff"):
            with pytest.raises(NotFoundError) as caught:
                find(toy.store, name)
            assert "1 (structure)" in caught.value.expected, name
        with pytest.raises(NotFoundError):
            find(toy.store, "joy:1")


class TestVerify:
    def test_a_sound_store(self, toy: Toy) -> None:
        checks = list(verify(toy.store))
        assert len(checks) == 3
        assert not any(check.problems or check.notes for check in checks)

    def test_each_fault_is_named(self, toy: Toy) -> None:
        config = toy.store.load(toy.two).path / "adapter_config.json"
        config.chmod(0o644)
        config.write_text("[]")
        toy.remove(toy.one)
        refs = toy.store.root / "refs" / "toy"
        (refs / "3" / "latest").write_text(toy.two)
        faults = {(check.name, problem.fault) for check in verify(toy.store) for problem in check.problems}
        assert faults == {("toy 2 brevity", "digest"), ("refs/toy/1", "missing"), ("refs/toy/3", "record")}
        notes = [note for check in verify(toy.store) for note in check.notes]
        assert notes == [f"ancestor {toy.one[7:19]} is not in this registry"] * 2

    def test_an_unreadable_record_is_one_fault(self, toy: Toy) -> None:
        (toy.store.load(toy.two).path / "lineage.json").unlink()
        faulty = [check for check in verify(toy.store) if check.problems]
        assert [(check.digest, check.problems[0].fault) for check in faulty] == [(toy.two, "record")]


class TestScores:
    def test_the_latest_of_each_variant_and_the_base(self, toy: Toy) -> None:
        for value in (0.4, 0.5):
            attest_scores(toy.store, "toy", [], accuracy(value))
            attest_scores(toy.store, "toy", [2, 1], accuracy(value + 0.1), {"engine": "hf"})
        assert scores(toy.store, "toy") == {"base": accuracy(0.5), "1+2": accuracy(0.6)}
        found = nodes(tree(toy.store, "toy"))
        assert found["acme/tiny-qwen2"].metrics == accuracy(0.5)
        assert (found["2 brevity"].variant, found["2 brevity"].metrics) == ("1+2", accuracy(0.6))
        assert found["1 structure"].metrics == []
        payload = toy.store.attestations(toy.two)[0].payload
        assert payload["engine"] == "hf"
        assert payload["inputs"] == {"1": toy.one, "2": toy.two}

    def test_scores_of_replaced_stages_are_not_shown(self, toy: Toy) -> None:
        attest_scores(toy.store, "toy", [], accuracy(0.5))
        attest_scores(toy.store, "toy", [1, 2], accuracy(0.6))
        toy.stage(1, "structure", [], licence="mit")
        assert scores(toy.store, "toy") == {"base": accuracy(0.5)}
        other = {"repo": "acme/other", "revision": "1" * 40}
        for number, name in ((1, "structure"), (2, "brevity"), (3, "remedy")):
            toy.stage(number, name, [], base=other)
        assert scores(toy.store, "toy") == {}

    def test_an_approximate_or_weighted_merge_does_not_borrow_scores(self, toy: Toy) -> None:
        attest_scores(toy.store, "toy", [1, 2], accuracy(0.6))
        toy.merge("exact", [toy.one, toy.two])
        toy.merge("lossy", [toy.one, toy.two], recipe=Recipe(details={"method": "svd"}))
        halved = [Parent(role="merge_input", digest=digest, scale=0.5) for digest in (toy.one, toy.two)]
        record = toy.make_record(None).model_copy(update={"parents": halved})
        toy.store.set_ref("toy", "merges", toy.store.publish(toy.folder, record), "halved")
        found = nodes(tree(toy.store, "toy"))
        assert found["exact"].metrics == accuracy(0.6)
        assert found["lossy"].metrics == found["halved"].metrics == []

    def test_unknown_stages_and_local_paths_are_refused(self, toy: Toy) -> None:
        with pytest.raises(NotFoundError):
            attest_scores(toy.store, "toy", [7], accuracy(0.5))
        with pytest.raises(ConfigError):
            attest_scores(toy.store, "toy", [1], accuracy(0.5), {"file": "/home/ann/x"})

    def test_a_garbled_attestation_is_named(self, toy: Toy) -> None:
        path = toy.store.attest(toy.one, "eval", {})
        path.write_text("{")
        with pytest.raises(IntegrityError) as caught:
            tree(toy.store, "toy")
        assert caught.value.where == str(path)
