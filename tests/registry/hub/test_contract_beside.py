"""What plyfold relies on around an adapter: commits that change or drop single files, and collections.

As `test_hub_contract`: `TestAnyHub` also runs against PLYFOLD_HUB_ENDPOINT, where it makes and deletes private
repositories and collections of the token's owner.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ...support.hub_store import git_blob_id
from .test_contract import CONFIG, HUBS, WEIGHTS, Place, place, status

__all__ = ["place"]  # the fixture


@pytest.fixture
def title(place: Place) -> Iterator[str]:
    """The title of a collection, which is deleted afterwards."""
    name = f"plyfold-contract-{uuid.uuid4().hex[:12]}"
    yield name
    for each in list(place.api.list_collections(owner=owner(place))):
        if each.title == name:
            place.api.delete_collection(each.slug, missing_ok=True)


def owner(place: Place) -> str:
    return place.repo.partition("/")[0]


def make(place: Place, title: str, **options: Any) -> Any:
    return place.api.create_collection(title, namespace=owner(place), private=True, **options)


@pytest.mark.parametrize("place", HUBS, indirect=True)
class TestAnyHub:
    def test_a_commit_keeps_what_it_does_not_name_and_drops_what_it_deletes(self, place):
        first = place.commit({"adapter_model.safetensors": WEIGHTS, "model.sig": b"{}", "README.md": b"old"})
        operations = [CommitOperationAdd("README.md", b"new"), CommitOperationDelete("model.sig", is_folder=False)]
        made = place.api.create_commit(place.repo, operations, commit_message="beside", parent_commit=first)
        assert place.paths(made.oid) - {".gitattributes"} == {"adapter_model.safetensors", "README.md"}
        assert "model.sig" in place.paths(first), "history keeps it"
        files = {file.path: file for file in place.api.list_repo_tree(place.repo, recursive=True, revision=made.oid)}
        assert files["README.md"].blob_id == git_blob_id(b"new")
        assert files["adapter_model.safetensors"].lfs.size == len(WEIGHTS)

    def test_a_small_json_is_in_git_itself_and_comes_back_to_the_byte(self, place):
        sha = place.commit({"revocations.json": CONFIG, "model.sig": CONFIG})
        files = {file.path: file for file in place.api.list_repo_tree(place.repo, recursive=True, revision=sha)}
        for name in ("revocations.json", "model.sig"):
            assert (files[name].lfs, files[name].blob_id) == (None, git_blob_id(CONFIG))
            assert (place.fetch(sha) / name).read_bytes() == CONFIG

    def test_a_stale_parent_refuses_a_deletion_and_equal_files_with_it(self, place):
        stale = place.commit({"a.txt": b"a", "b.txt": b"b"})
        head = place.commit({"a.txt": b"other"})
        operations = [CommitOperationAdd("a.txt", b"other"), CommitOperationDelete("b.txt", is_folder=False)]
        with pytest.raises(HfHubHTTPError) as error:
            place.api.create_commit(place.repo, operations, commit_message="late", parent_commit=stale)
        assert (status(error), place.head) == (412, head)

    def test_a_title_names_one_collection_of_its_owner(self, place, title):
        made = make(place, title, description="x" * 150)
        assert made.slug.startswith(f"{owner(place)}/")
        assert made.url.endswith(f"/collections/{made.slug}")
        assert (made.title, made.private, made.items) == (title, True, [])
        with pytest.raises(HfHubHTTPError) as error:
            make(place, title)
        assert status(error) == 409
        assert make(place, title, exists_ok=True).slug == made.slug

    def test_a_repository_is_in_a_collection_once_and_keeps_its_note(self, place, title):
        slug = make(place, title).slug
        (item,) = place.api.add_collection_item(slug, place.repo, "model", note="first").items
        assert (item.item_id, item.item_type, item.note) == (place.repo, "model", "first")
        with pytest.raises(HfHubHTTPError) as error:
            place.api.add_collection_item(slug, place.repo, "model", note="second")
        assert status(error) == 409
        again = place.api.add_collection_item(slug, place.repo, "model", note="second", exists_ok=True)
        assert [each.note for each in again.items] == ["first"]
        assert [each.item_id for each in make(place, title, exists_ok=True).items] == [place.repo]

    def test_what_is_not_there_cannot_be_collected(self, place, title):
        slug = make(place, title).slug
        with pytest.raises(HfHubHTTPError) as error:
            place.api.add_collection_item(slug, f"{place.repo}-none", "model")
        assert status(error) == 404
        with pytest.raises(HfHubHTTPError) as error:
            place.api.get_collection(f"{slug}0")
        assert status(error) == 404

    def test_a_private_collection_is_not_there_for_a_stranger(self, place, title):
        slug = make(place, title).slug
        with pytest.raises(HfHubHTTPError) as error:
            place.api.get_collection(slug, token=False)
        assert status(error) in (401, 404)


class TestOnlyTheTestHub:
    def test_a_reader_may_not_collect(self, hub, place):
        reader = HfApi(endpoint=hub.url, token=hub.read_token)
        slug = place.api.create_collection("open", namespace="acme").slug
        assert reader.get_collection(slug).title == "open"
        for act in (
            lambda: reader.create_collection("mine", namespace="acme"),
            lambda: reader.add_collection_item(slug, place.repo, "model"),
        ):
            with pytest.raises(HfHubHTTPError) as error:
                act()
            assert status(error) == 403

    @pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
    def test_a_lost_answer_leaves_one_collection(self, hub, place, kind):
        import httpx2

        hub.fault("POST /api/collections", kind)
        with pytest.raises(httpx2.RemoteProtocolError):
            make(place, "once")
        slug = make(place, "once", exists_ok=True).slug
        assert [each.slug for each in place.api.list_collections(owner="writer")] == [slug]
