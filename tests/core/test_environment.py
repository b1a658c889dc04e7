"""What a config may read from the environment, and that a canary in it arrives nowhere, field by field."""

from __future__ import annotations

import json
import logging
import pickle
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from plyfold.core.config import (
    CurriculumConfig,
    DataConfig,
    build_config,
    config_dict,
    load_config,
    save_config,
    scalar_fields,
)
from plyfold.core.console import printable
from plyfold.core.environment import EnvironmentText, meaning
from plyfold.core.errors import ConfigError, FailedError
from plyfold.data.dataset import load_rows, source_name
from plyfold.registry.record import portable
from plyfold.registry.store import find_store

CANARY = "CANARY77VALUE"
READ = "${oc.env:PLYFOLD_CANARY}"
LOCAL = r"base\.path|((stages\.\w+|eval)\.)?data\.path|rollout\.url"
"""The fields that stay on this machine, said a second time so that another one is no accident."""
CONFIGS = ("sandbox", "gsm8k", "paper")


@pytest.fixture(autouse=True)
def _canary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLYFOLD_CANARY", CANARY)


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Every single value by its key, `targets[0]` for that of a list."""
    if isinstance(value, dict) and value:
        items = [(f"{key}.{name}".lstrip("."), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{key}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for place, item in items for name, leaf in _leaves(item, place).items()}


def _one_stage(name: str) -> dict[str, Any]:
    """A packaged config without its later stages."""
    values = config_dict(load_config(name))
    del values["stages"]["brevity"], values["stages"]["remedy"]
    return dict(json.loads(json.dumps(values)))


def _keys(name: str) -> list[str]:
    """The texts and lists of a packaged config; of the sandbox every field of every class, and what holds them."""
    values = _one_stage(name)
    said = {key for key, value in _leaves(values).items() if isinstance(value, str)}
    if name != "sandbox":
        return sorted(said)
    declared = {key.replace("NAME", "structure") for key, _ in scalar_fields()}
    whole = {key.rpartition(".")[0] for key in declared if "." in key}
    return sorted({*_leaves(values), *declared, *whole, "stages.structure.trainer.run_name", "unknown"})


def _changed(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Values with others at some keys."""
    changed = json.loads(json.dumps(values))
    for key, value in change.items():
        *parts, last = [int(part) if part.isdecimal() else part for part in re.findall(r"[\w-]+", key)]
        owner = changed
        for part in parts:
            owner[part] = {"path": "sandbox"} if owner[part] is None else owner[part]
            owner = owner[part]
        owner[last] = value
    return dict(changed)


def _loaded(values: dict[str, Any], folder: Path) -> CurriculumConfig:
    """A user's own config of those values; JSON is YAML."""
    file = folder / "own.yaml"
    file.write_text(json.dumps(values))
    return load_config(file)


def _refused(load: Callable[[], CurriculumConfig]) -> tuple[CurriculumConfig | None, ConfigError]:
    try:
        return load(), ConfigError("")
    except ConfigError as error:
        return None, error


def _said(config: CurriculumConfig, folder: Path) -> str:
    """All that becomes of a config: print, log, save, record."""
    save_config(config, folder / "saved.yaml")
    record = portable(config_dict(config))
    return (
        f"{config} {vars(config)} {json.dumps(record)} {json.dumps(config_dict(config))} "
        + (folder / "saved.yaml").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_only_what_stays_here_is_read_and_it_is_said_nowhere(name: str, tmp_path: Path) -> None:
    keys, values, read = _keys(name), _one_stage(name), set()
    assert len(keys) > (100 if name == "sandbox" else 20)
    for key in keys:
        config, error = _refused(lambda key=key: _loaded(_changed(values, {key: READ}), tmp_path))  # type: ignore[misc]
        if config is None:
            assert CANARY not in str(error)
            assert key in error.where
            assert READ in error.found
        else:
            read.add(key)
            assert CANARY not in _said(config, tmp_path)
    assert read == {key for key in keys if re.fullmatch(LOCAL, key)}


@pytest.mark.parametrize(
    "override",
    ["base.licence=${oc.env:PLYFOLD_CANARY}", "base.licence=a${oc.env:PLYFOLD_CANARY}", "base.licence=${base.path}",
     "base.licence=${.path}", "base.licence=x${base[path]}", "seed=${base.path}", "base.double_quant=${base.path}",
     "eval.data.columns={question: '${oc.env:PLYFOLD_CANARY}'}", "adapter.targets=['${base.path}']",
     "adapter.targets=[q_proj, ['${oc.env:PLYFOLD_CANARY}']]", "data=${base}", "data.columns=${base}",
     "stages.structure.trainer.lr_scheduler_kwargs=${base}", "stages.structure.trainer=${base}", "stages=${base}",
     "stages.structure.trainer.run_name={a: [{b: '${base.path}'}]}", "base.licence=${oc.decode:${base.path}}",
     "base.licence=${oc.select:base.path}", "base.licence=${oc.create:'${base.path}'}", "base.licence=${env:HOME}",
     "base.licence='${oc.dict.values:base}'", "base.path=${oc.env:${base.licence}}", "base.path=${oc.env:PLYFOLD_NONE}",
     "base.licence='\\\\${oc.env:PLYFOLD_CANARY}'", "base.path=${oc.env:A,${oc.env:PLYFOLD_CANARY}}",
     "stages.${oc.env:PLYFOLD_CANARY}.number=4", "stages.structure.trainer.${oc.env:PLYFOLD_CANARY}=1x${base.path}",
     "base.licence=${oc.env:PLYFOLD_CANARY", "base.licence=${ oc.env : PLYFOLD_CANARY }", 
     "base.licence=${base.${seed}}",
     "base.licence=!!python/object/apply:os.getenv [PLYFOLD_CANARY]", "base.licence=${base.licence}",
     "base.licence=!!python/object/apply:pathlib.PosixPath ['${oc.env:PLYFOLD_CANARY}']",
     "base.licence=!!python/object/apply:pathlib.Path ['${oc.decode:${oc.env:PLYFOLD_CANARY}}']",
     "stages.structure.trainer.run_name=!!python/object/apply:pathlib.Path ['${oc.env:PLYFOLD_CANARY}']",
     f"base.licence=!!binary {b64encode(READ.encode()).decode()}",
     "rollout.url=http://127.0.0.1:9/${oc.env:PLYFOLD_CANARY}", "rollout.url=${oc.env:PLYFOLD_CANARY}.example.org",
     "rollout.url=${oc.env:PLYFOLD_NONE,http://127.0.0.1:9}/${oc.env:PLYFOLD_CANARY}"],
)  # fmt: skip
def test_there_is_no_other_way(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", ["base.path=${oc.env:PLYFOLD_CANARY}/base", override])
    assert CANARY not in str(caught.value)
    assert caught.value.where or caught.value.found


def test_a_resolver_of_somebody_else_is_not_called() -> None:
    called = []
    OmegaConf.register_resolver("plyfold_test", lambda: called.append(1) or CANARY)
    try:
        for path in ("base.path", "base.licence"):
            with pytest.raises(ConfigError, match="not read"):
                load_config("sandbox", [f"{path}=${{plyfold_test:}}"])
        built = build_config({**config_dict(load_config("sandbox")), "curriculum": "x"}, [])
        values = config_dict(built)
        values["base"]["licence"] = "${plyfold_test:}"
        assert build_config(values).base.licence == "${plyfold_test:}"
    finally:
        OmegaConf.clear_resolver("plyfold_test")
    assert not called


@pytest.mark.slow
def test_what_an_error_advises_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", ["stages.structure.data.split=${oc.env:PLYFOLD_CANARY}"])
    advised = re.search(r"put it in: (\S+)$", caught.value.next_step)
    assert advised
    shell = advised[1].replace('"$PLYFOLD_CANARY"', "held-out")
    assert load_config("sandbox", [shell]).stages["structure"].data.split == "held-out"  # type: ignore[union-attr]
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", ["base.path=${oc.env:PLYFOLD_NONE}"])
    monkeypatch.setenv("PLYFOLD_NONE", "there")
    assert meaning(load_config("sandbox", ["base.path=${oc.env:PLYFOLD_NONE}"]).base.path or "") == "there"
    monkeypatch.setenv("PLYFOLD_NONE", "")
    config = load_config("sandbox", ["base.path=${oc.env:PLYFOLD_NONE,a/b}", "rollout.url=${oc.env:PLYFOLD_NONE,null}"])
    assert (meaning(config.base.path or ""), config.rollout.url) == ("a/b", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [READ, "${base.licence}", "${oc.decode:${oc.env:PLYFOLD_CANARY}}", "${oc.env:X", "\\${a}"]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_records_config_is_plain_data(name: str, text: str, tmp_path: Path) -> None:
    values = json.loads(json.dumps(config_dict(load_config(name))))
    texts = {key: text for key, leaf in _leaves(values).items() if isinstance(leaf, str) and key != "curriculum"}
    config = build_config(_changed(values, texts), ["eval.limit=2"], where="the record of 1 structure")
    said = _leaves(config_dict(config))
    assert {key: said[key] for key in texts} == texts
    assert not any(isinstance(leaf, EnvironmentText) for leaf in said.values())
    assert CANARY not in _said(config, tmp_path)


@pytest.mark.slow
def test_a_records_numbers_are_no_texts() -> None:
    values = _one_stage("sandbox")
    for key, leaf in _leaves(values).items():
        if leaf is not None and not isinstance(leaf, str) and "trainer" not in key:
            text = "${oc.decode:${oc.env:PLYFOLD_CANARY}}" if "." in key else READ
            with pytest.raises(ConfigError) as caught:
                build_config(_changed(values, {key: text}), where="the record of 1 structure")
            assert CANARY not in str(caught.value)
            assert "the record of 1 structure" in caught.value.where


def test_older_records_name_the_curriculums_rows_by_reference() -> None:
    config = load_config("gsm8k", ["data.path=train.jsonl"])
    values = json.loads(json.dumps(config_dict(config)))
    for stage in values["stages"].values():
        stage["data"] |= {key: f"${{data.{key}}}" for key in ("path", "name", "revision", "columns")}
    assert build_config(values) == config
    values["eval"]["data"]["split"] = "${data.split}"
    assert build_config(values).eval.data.split == "${data.split}"


@pytest.mark.slow
def test_a_file_is_read_where_the_variable_leads_and_named_as_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    monkeypatch.setenv("PLYFOLD_CANARY", str(folder))

    def data(path: str) -> DataConfig:
        return load_config("sandbox", [f"data.path={path}", "data.rows=null"]).data

    asked = data(f"{READ}/train.jsonl")
    assert load_rows(asked)[0].question == "1 + 1?"
    assert source_name(asked) == portable(asked.path) == "train.jsonl"
    monkeypatch.setenv("PLYFOLD_FILE", f"{folder}/train.jsonl")
    assert load_rows(data("${oc.env:PLYFOLD_FILE}"))
    assert source_name(data("${oc.env:PLYFOLD_FILE}")) == "${oc.env:PLYFOLD_FILE}"
    assert source_name(data("${oc.env:PLYFOLD_FILE,/home/me/rows.jsonl}")) == "${oc.env:PLYFOLD_FILE}"
    assert pickle.loads(pickle.dumps(asked)) == asked
    assert load_rows(pickle.loads(pickle.dumps(asked)))  # as another training process gets it
    (folder / "bad.jsonl").write_text("{")
    for path in (f"{READ}/none.jsonl", f"{READ}/bad.jsonl", f"{READ}x", f"org/{READ}", "${oc.env:PLYFOLD_FILE}"):
        monkeypatch.setenv("PLYFOLD_FILE", CANARY)  # a name as datasets of the Hub have
        with pytest.raises(Exception, match=r".") as caught:
            load_rows(data(path))
        assert CANARY not in f"{caught.value} {caught.value.where}"  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="does not exist"):  # a record's, which is read as it stands
        load_rows(DataConfig(path="${oc.env:PLYFOLD_FILE}"))


def test_where_the_base_lies_is_noted_as_it_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / CANARY / "base"
    base.mkdir(parents=True)
    monkeypatch.setenv("PLYFOLD_CANARY", str(base.parent))
    store, named = find_store(tmp_path / "registry", create=True), ("a/b", "0" * 40)
    store.remember_base(*named, base, f"{READ}/base")
    assert store.base_path(*named) == base
    assert not [file for file in store.root.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    other = tmp_path / "other"
    (other / "base").mkdir(parents=True)
    monkeypatch.setenv("PLYFOLD_CANARY", str(other))  # a stranger's file is followed to no place it did not know
    assert store.base_path(*named) is None
    assert f"{READ}/base" in capsys.readouterr().err
    store.remember_base(*named, other)
    assert store.base_path(*named) == other


@pytest.mark.parametrize(
    ("value", "said", "shown"),
    [(CANARY, f"in /x/{CANARY}/y and {CANARY!r}", f"in /x/{READ}/y and {READ!r}"),
     ("/srv/m", "not in /srv/m/config.json", f"not in {READ}/config.json"),
     ("data", "the data file data/a.json is no /srv/data", f"the data file {READ}/a.json is no /srv/{READ}"),
     ("/", "no /srv", "no /srv"), ("..", "no ../a", "no ../a")],
)  # fmt: skip
def test_other_peoples_words_are_put_right(
    value: str, said: str, shown: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("plyfold.core.environment._spellings", {})
    monkeypatch.setenv("PLYFOLD_CANARY", value)
    EnvironmentText(READ, f"no/such/{value}/folder-of-this-test")
    assert FailedError(said, where=said, found=said, next_step=said).fields()[0] == ("where", shown)
    assert printable(said) == shown
    logging.getLogger("datasets").warning("read %s", said)
    assert caplog.messages[-1] == f"read {shown}"


def test_reading_it_costs_nothing_where_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plyfold.core.environment._spellings", {})
    make: Callable[..., logging.LogRecord] = logging.getLogRecordFactory()
    load_config("gsm8k")
    assert logging.getLogRecordFactory() is make
