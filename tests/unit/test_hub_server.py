"""The `hub` fixture: this process and its children are sent to the test Hub."""

from __future__ import annotations

from huggingface_hub import HfApi, snapshot_download


def test_the_fixture_sends_the_client_of_this_process_there(hub):
    api = HfApi()
    assert api.whoami()["name"] == "writer"
    api.create_repo("acme/a")
    folder = snapshot_download("acme/a")
    assert folder.startswith(hub.environment["HF_HOME"])
    assert [str(request) for request in hub.seen("create")] == ["POST /api/repos/create"]


def test_the_fixture_runs_the_command_line(hub):
    done = hub.run(["--version"])
    assert done.returncode == 0, done.stderr
