"""A user's config is read within bounds: what would take memory, a stack or an hour is one error with exit 2."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from plyfold.cli.main import run
from plyfold.core.config import find_config, load_config
from plyfold.core.errors import ConfigError
from plyfold.core.reading.yaml_text import MAX_BYTES

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SANDBOX = find_config("sandbox").read_text()


def doubled(first: str, each: str) -> bytes:
    """A config in which each of many texts is twice the one before it."""
    lines = [first, *(each.format(index=index, before=index - 1) for index in range(1, 26))]
    return SANDBOX.replace(
        "    trainer:\n", "    trainer:\n" + "".join(f"      {line}\n" for line in lines), 1
    ).encode()


CONFIGS: dict[str, bytes] = {
    "a billion laughs": LAUGHS.encode(),
    "merged laughs": b"a: &a {x: 1}\n"
    + b"".join(f"k{i}: &k{i} {{<<: *{'k' + str(i - 1) if i else 'a'}, y: *a}}\n".encode() for i in range(9000)),
    "itself": b"a: &a [*a]\n",
    "itself in a mapping": b"&a x: *a\n? &b [*b]\n: 1\n",
    "brackets": b"[" * 100_000,
    "braces": b"{a: " * 30_000,
    "blocks": b"".join(b" " * i + b"- \n" for i in range(400)),
    "dashes": b"- " * 50_000 + b"a",
    "15 MB": SANDBOX.encode() + b"# " + b"x" * 15_000_000,
    "long": SANDBOX.encode() + b"x" * MAX_BYTES,
    "not UTF-8": SANDBOX.encode() + b"# \xff\xfe",
    "Latin 1": "curriculum: é".encode("latin-1"),
    "control": SANDBOX.encode() + b"\x00\x1b",
    "code": b"curriculum: !!python/object/apply:os.system [id]\n",
    "unknown alias": b"a: *b\n",
    "twice": SANDBOX.encode() + b"\ncurriculum: again\n",
    "list": b"- 1\n",
    "nothing": b"",
    "two documents": b"a: 1\n---\nb: 2\n",
    "tab": b"a:\n\t- 1\n",
    "digits": SANDBOX.encode() + b"\nseed: " + b"9" * 5000,
    "backslashes": SANDBOX.encode() + b"\nodd: '" + b"\\" * 150_000 + b"'\n",
    "doubled": doubled(
        "a0: xxxxxxxx", "a{index}: '${{stages.structure.trainer.a{before}}}${{stages.structure.trainer.a{before}}}'"
    ),
    "doubled by numbers": doubled("0: xxxxxxxx", "{index}: '${{.{before}}}${{.{before}}}'"),
    "doubled in brackets": doubled(
        "a0: xxxxxxxx",
        "a{index}: '${{stages[structure].trainer[a{before}]}}${{stages[structure][trainer][a{before}]}}'",
    ),
    "doubled beside": doubled("a0: {b: xxxxxxxx}", "a{index}: {{b: '${{..a{before}.b}}${{..a{before}.b}}'}}"),
    "doubled sections": doubled("a0: {b: xxxxxxxx}", "a{index}: {{b: '${{..a{before}}}', c: '${{..a{before}}}'}}"),
    "interpolations": b"curriculum: '" + b"${" * 2000 + b"'\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_is_too_much_or_none_is_one_error(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(CONFIGS[kind])
    before_kb, begin_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert run(["train", "--dry-run", "-c", str(path)]) == 2
    assert time.monotonic() - begin_s < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000
    said = capsys.readouterr().err
    assert said.startswith("error[config]")
    assert not said.startswith("error[config]: unexpected")
    assert len(said) < 2000


@pytest.mark.parametrize(
    "override",
    ["seed=" + "[" * 5000, "seed=" + "9" * 5000, "base.repo={a: &a [*a]}", "a" + ".a" * 5000 + "=1", "seed=.inf",
     "eval.temperature=.nan", "eval.temperature=1e999", "base.repo=\"\\ud800\"", "seed=" + "9" * 65, "=1",
     "a[" * 500 + "=1", "base.repo=" + "${" * 1000],
)  # fmt: skip
def test_an_override_that_is_too_much_or_none_is_one_error(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sandbox", [override])
    assert len(str(caught.value)) < 2000


def test_aliases_that_repeat_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        SANDBOX + "\n" if "adapter:" in SANDBOX else SANDBOX + "\nadapter: {targets: &t [q_proj, v_proj]}\n"
    )
    assert load_config(path).curriculum == "sandbox"
