"""The user's word on the base is taken over what adapters call it, and told; quantised copies are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plyfold.adapters.base.quantised import unquantised_name
from plyfold.adapters.base.resolve import check_weights, folder_identity, resolve_base, sandbox_folder
from plyfold.adapters.hub import hub_uri
from plyfold.cli.main import run
from plyfold.core.config import BaseConfig
from plyfold.core.errors import BaseMismatchError, ConfigError, IncompatibleError, NotFoundError
from plyfold.merge.compose.prepare import prepare
from plyfold.merge.inputs import Part, parse_base
from plyfold.merge.plan import plan_compose

from ..support.peft_folders import SHAPES, write_adapter_folder, write_base_folder

COMMIT, OTHER = "0" * 40, "1" * 40
COPIES = {
    "unsloth/qwen2.5-3b-unsloth-bnb-4bit": "unsloth/qwen2.5-3b",
    "unsloth/Llama-3.2-1B-bnb-4bit": "unsloth/Llama-3.2-1B",
    "Qwen/Qwen2.5-3B-Instruct-AWQ": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct-GPTQ-Int4": "Qwen/Qwen2.5-3B-Instruct",
    "RedHatAI/gemma-3-1b-it-FP8-dynamic": "RedHatAI/gemma-3-1b-it",
    "RedHatAI/Llama-3.2-1B-Instruct-quantized.w4a16": "RedHatAI/Llama-3.2-1B-Instruct",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PLYFOLD_REGISTRY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapter(name: str, seed: int, repo: str | None, revision: str | None = None) -> Part:
    return Part(
        write_adapter_folder(Path(name), seed=seed, base_model_name_or_path=repo, revision=revision).path.absolute()
    )


@pytest.mark.parametrize(
    "name", ["unsloth/tiny-bnb-4bit", "models/tiny", "/content/tiny", "ACME/Tiny", "./tiny", "C:\\models\\tiny"]
)
def test_a_name_for_the_same_base_is_taken_with_a_warning(name: str) -> None:
    parts = [adapter("a", 1, "acme/tiny", COMMIT), adapter("b", 2, name)]
    with pytest.raises(BaseMismatchError) as caught:
        plan_compose(parts)
    assert "--base acme/tiny" in caught.value.next_step
    plan = plan_compose(parts, base=parse_base("acme/tiny"))
    assert (plan.base_repo, plan.base_revision) == ("acme/tiny", COMMIT)
    (warning,) = plan.warnings
    assert "b: trained on" in warning
    assert repr(name) in warning


def test_a_commit_of_another_name_is_not_the_base_s() -> None:
    plan = plan_compose([adapter("a", 1, "unsloth/tiny-bnb-4bit", OTHER)], base=parse_base("acme/tiny"))
    assert (plan.base_repo, plan.base_revision) == ("acme/tiny", None)


def test_a_branch_goes_with_a_commit_where_the_user_says_so() -> None:
    parts = [adapter("a", 1, "acme/tiny", "main"), adapter("b", 2, "acme/tiny", COMMIT)]
    with pytest.raises(BaseMismatchError, match="revisions") as caught:
        plan_compose(parts)
    assert f"--base acme/tiny@{COMMIT}" in caught.value.next_step
    for word in ("acme/tiny", f"acme/tiny@{COMMIT}"):
        plan = plan_compose(parts, base=parse_base(word))
        assert plan.base_revision == COMMIT
        assert any("revision main" in warning for warning in plan.warnings)


def test_two_commits_are_one_only_where_the_commit_is_named() -> None:
    parts = [adapter("a", 1, "acme/tiny", OTHER), adapter("b", 2, "acme/tiny", COMMIT)]
    with pytest.raises(BaseMismatchError, match="revisions"):
        plan_compose(parts, base=parse_base("acme/tiny"))
    assert plan_compose(parts, base=parse_base(f"acme/tiny@{COMMIT}")).base_revision == COMMIT


def test_a_folder_is_the_base_whatever_it_is_called(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = here / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    write_base_folder(snapshot)
    shutil.copytree(snapshot, here / "copy")
    adapter("a", 1, "unsloth/tiny-bnb-4bit")
    adapter("b", 2, "acme/tiny-copy")
    for base in (str(snapshot), "copy"):
        assert run(["merge", "a", "b", "--into", "model", "--base", base, "-o", f"out-{Path(base).name}"]) == 0
        assert "as --base says" in capsys.readouterr().err
    assert folder_identity(snapshot) == ("acme/tiny", COMMIT)
    one, two = (load_file(here / f"out-{name}" / "model.safetensors") for name in (COMMIT, "copy"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("acme/tiny", "acme/tiny", None),
        (f"acme/tiny@{COMMIT}", "acme/tiny", COMMIT),
        ("hf://acme/tiny@v1", "acme/tiny", "v1"),
        ("https://huggingface.co/acme/tiny", "acme/tiny", None),
        ("http://www.huggingface.co/acme/tiny/", "acme/tiny", None),
        ("https://huggingface.co/acme/tiny/tree/main", "acme/tiny", "main"),
        (f"https://huggingface.co/acme/tiny/blob/{COMMIT}/config.json?x=1#L2", "acme/tiny", COMMIT),
        ("https://hf.co/acme/tiny/discussions/3", "acme/tiny", None),
        ("gpt2", "gpt2", None),
        ("huggingface.co/acme/tiny", "acme/tiny", None),
        ("HuggingFace.co/acme/tiny/tree/v1", "acme/tiny", "v1"),
        ("hf://models/acme/tiny@v1", "acme/tiny", "v1"),
        ("acme/tiny/", "acme/tiny", None),
        (" acme/tiny ", "acme/tiny", None),
    ],
)
def test_a_base_as_people_write_it(text: str, repo: str, revision: str | None) -> None:
    word = parse_base(text)
    assert (word.repo, word.revision, word.folder) == (repo, revision, None)


@pytest.mark.parametrize("text", ["https://example.org/acme/tiny", "https://huggingface.co/datasets/acme/rows"])
def test_an_address_that_is_no_model(text: str) -> None:
    with pytest.raises(ConfigError, match="not a model"):
        parse_base(text)


@pytest.mark.parametrize("text", ["", "  ", "models--acme--tiny", "a b", "file:///tmp/tiny"])
def test_what_no_base_is_called(text: str) -> None:
    with pytest.raises(ConfigError, match="not a model"):
        parse_base(text)


def test_a_base_on_the_hub_has_the_id_of_one() -> None:
    for repo in ("/content/tiny", "./tiny", "models--acme--tiny", "", "C:\\models\\tiny", "acme/tiny@main", "a b"):
        with pytest.raises(ConfigError, match="no Hub id") as caught:
            resolve_base(BaseConfig(repo=repo, revision="main"))
        assert "ORG/MODEL" in caught.value.next_step


@pytest.mark.parametrize(
    "name", ["/content/tiny", "./tiny", "C:\\models\\tiny", "models--acme--tiny", "https://hf.co/acme/tiny", "", None]
)
def test_whatever_an_adapter_calls_its_base_it_is_composed(name: str | None, here: Path) -> None:
    for place, seed in (("a", 1), ("b", 2)):
        adapter(place, seed, name)
    assert run(["merge", "a", "b", "-o", "out"]) == 0
    written = json.loads((here / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert written == ("acme/tiny" if name and name.startswith("https") else name or "")


@pytest.mark.parametrize("name", ["/content/tiny", "", "acme/tiny"])
def test_what_a_merge_is_served_on_is_at_hand(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter("a", 1, name)
    write_base_folder(here / "tiny")
    assert run(["merge", "a", "-o", "one", "--base", "tiny"]) == 0
    assert "plyfold serve ./one --base tiny" in capsys.readouterr().out
    assert run(["merge", "a", "-o", "two"]) == 0
    said = capsys.readouterr().out
    assert "plyfold serve ./two" in said
    assert ("the folder or Hub id of the base for BASE" in said) is (name != "acme/tiny")


def test_import_reads_a_base_as_merge_does(here: Path) -> None:
    adapter("a", 1, None)
    for base in (f"hf.co/acme/tiny/tree/{COMMIT}", f"hf://models/acme/tiny@{COMMIT}", f"acme/tiny@{COMMIT}"):
        assert run(["import", "a", "--base", base, "--name", "one"]) == 0


def test_a_file_of_a_base_is_answered_with_its_folder(here: Path) -> None:
    write_base_folder(here / "tiny")
    with pytest.raises(ConfigError, match="not a file of it") as caught:
        parse_base("tiny/config.json")
    assert caught.value.next_step == "--base tiny"


def test_a_folder_without_a_model_says_what_is_in_it(here: Path) -> None:
    adapter("a", 1, "acme/tiny")
    write_base_folder(here / "models--acme--tiny" / "snapshots" / COMMIT)
    for folder, said in (("a", "an adapter"), ("models--acme--tiny", f"snapshots/{COMMIT}")):
        with pytest.raises(NotFoundError, match=r"no config\.json") as caught:
            check_weights(here / folder)
        assert said in caught.value.found


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match="no such base folder"):
        parse_base("./nowhere")


def test_addresses_of_adapters_and_datasets() -> None:
    assert hub_uri("https://huggingface.co/acme/lora/tree/main/checkpoint-5") == "hf://acme/lora@main/checkpoint-5"
    assert hub_uri("https://huggingface.co/datasets/acme/rows/viewer/a/b") == "hf://datasets/acme/rows"
    assert hub_uri("hf://acme/lora") == "hf://acme/lora"
    assert hub_uri("acme/lora") == "acme/lora"


# ---- quantised copies


@pytest.mark.parametrize("copy", COPIES)
def test_the_name_a_quantised_copy_was_made_from(copy: str) -> None:
    assert unquantised_name(copy).lower() == COPIES[copy].lower()


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-3B", "google/gemma-3-1b-it", "acme/bit", "acme/4bitter", "acme/int8er"])
def test_a_name_that_says_nothing(name: str) -> None:
    assert unquantised_name(name) == name


def bnb(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    tensors[f"{name}.absmax"] = torch.ones(4)


def gptq(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]
    tensors[name.replace(".weight", ".qweight")] = torch.zeros(4, 4, dtype=torch.int32)


def compressed(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]
    tensors[f"{name}_packed"] = torch.zeros(4, 4, dtype=torch.int32)


def fp8(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.ones(1)


def mxfp4(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["model.layers.0.mlp.experts.down_proj_blocks"] = torch.zeros(2, 2, 2, dtype=torch.uint8)


def asked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("pack", [bnb, gptq, compressed, fp8, mxfp4, None])
def test_quantised_weights_are_refused_when_planned(
    here: Path, capsys: pytest.CaptureFixture[str], pack: Callable[[dict[str, torch.Tensor], str], None] | None
) -> None:
    base = Path(shutil.copytree(sandbox_folder(), here / "base"))
    if pack:
        tensors = load_file(base / "model.safetensors")
        pack(tensors, "model.layers.0.mlp.down_proj.weight")
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    else:
        asked(base)
    config = BaseConfig(repo="unsloth/sandbox-bnb-4bit", revision="auto", path=str(base))
    with pytest.raises(IncompatibleError, match="quantised already") as caught:
        resolve_base(config)
    assert "base.repo=unsloth/sandbox" in caught.value.next_step
    overrides = [f"base.path={base}", "base.repo=unsloth/sandbox-bnb-4bit", "base.revision=auto"]
    for command in ("train", "rollouts"):
        assert run([command, "-c", "sandbox", "--dry-run", *overrides]) == 8
        assert "quantised already" in capsys.readouterr().err
    assert not (here / "runs").exists()
    assert not (here / ".plyfold" / "objects").exists()


def test_an_import_does_not_take_a_quantised_copy_for_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    adapter("a", 1, "unsloth/tiny-bnb-4bit", OTHER)
    assert run(["import", "a"]) == 2
    assert "--base unsloth/tiny@COMMIT" in capsys.readouterr().err
    assert run(["import", "a", "--base", "acme/tiny"]) == 2, "a commit of the copy is none of the base's"
    capsys.readouterr()
    assert run(["import", "a", "--base", f"https://huggingface.co/acme/tiny/tree/{COMMIT}"]) == 0
    assert run(["import", "a", "--base", f"acme/tiny@{COMMIT}", "--json"]) == 0


# ---- parts that add nothing


def nothing(name: str, **changes: Any) -> Part:
    return Part(write_adapter_folder(Path(name), seed=9, **changes).path)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: nothing("idle", alpha=0), "idle has lora_alpha 0"),
        (lambda: nothing("idle", alpha_pattern=dict.fromkeys(("q_proj", "k_proj", "down_proj"), 0)), "idle has lora_"),
        (lambda: nothing("idle", zero=True), "idle is all zeros"),
        (lambda: Part(nothing("idle").path, 0.0), "idle has weight 0"),
    ],
)
def test_a_part_that_adds_nothing_is_named(part: Callable[[], Part], said: str) -> None:
    idle = part()
    prepared = prepare(plan_compose([adapter("a", 1, "acme/tiny", COMMIT), idle]))
    warnings = [*prepared.plan.warnings, *prepared.warnings]
    assert len([warning for warning in warnings if said in warning]) == 1
    assert prepared.to_json()["adding_nothing"] == ["idle"]
    alone = prepare(plan_compose([idle]))
    assert any("the result is the base" in warning for warning in alone.warnings)
    assert "adding_nothing" not in prepare(plan_compose([adapter("b", 2, "acme/tiny", COMMIT)])).to_json()


def test_some_modules_that_add_nothing_are_counted() -> None:
    plan = plan_compose([nothing("half", alpha_pattern={"q_proj": 0})])
    assert f"half has alpha 0 for 1 of its {len(SHAPES)} modules" in plan.warnings


@pytest.mark.parametrize("changes", [{"alpha": 0}, {"zero": True}])
def test_an_import_that_adds_nothing_is_said(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    nothing("idle", base_model_name_or_path="acme/tiny", revision=COMMIT, **changes)
    assert run(["import", "idle"]) == 0
    assert "idle adds nothing" in capsys.readouterr().err


# ---- folders that hold adapters further in


def test_adapters_inside_a_folder_are_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20):
        adapter(f"run/checkpoint-{step}", step, "acme/tiny")
    assert run(["merge", "run", "-o", "out"]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "run/checkpoint-10" in told
    assert "name one of them, as run/checkpoint-20" in told
