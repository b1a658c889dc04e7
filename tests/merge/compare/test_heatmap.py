"""The heat map page as text: every module has its place, and nothing from a file is taken as HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from plyfold.merge.compare.heatmap import layout, render_heatmap
from plyfold.merge.compare.interference import for_comparison, interference
from plyfold.merge.compare.pair_metrics import Interference, PairInterference, Relation
from plyfold.merge.inputs import Part

from ...support.peft_folders import SHAPES, write_adapter_folder

HOSTILE = "\"'><script>alert(1)</script>&"


class Reader(HTMLParser):
    """Tags as opened, and the words of tables, cells by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open_tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open_tags.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open_tags):
            self.tables[-1][-1][-1] += data

    def maps(self) -> dict[str, list[list[str]]]:
        titles = [
            str(attrs["data-of"]) + ": " + str(attrs["data-measure"]) for tag, attrs in self.tags if tag == "figure"
        ]
        return dict(zip(titles, self.tables[-len(titles) :], strict=True))


def one(name: str, **fields: float) -> Interference:
    relation = Relation(**{"square_first": 1.0, "square_second": 4.0, **fields})
    pair = PairInterference(first="a", second="b", modules={name: relation}, only_first=(), only_second=())
    norms = {name: (1.0, 2.0)}
    return Interference(labels=("a", "b"), norms=norms, pairs=(pair,), sti={name: None}, total_sti=None)


def test_every_number_stands_in_its_layer_and_kind(tmp_path: Path) -> None:
    parts = [Part(write_adapter_folder(tmp_path / name, seed=seed).path) for seed, name in enumerate("ab")]
    found = interference(for_comparison(*parts))
    maps = Reader(render_heatmap(found, "t", {})).maps()
    assert [title.removeprefix("a / b: ") for title in maps] == [
        "cosine", "signs", "columns", "rows", "sti", "norm0", "norm1",
    ]  # fmt: skip
    head, row = maps["a / b: cosine"]
    assert (head, row[0]) == (["layer", "q_proj", "k_proj", "down_proj"], "0")
    for kind, shown in zip(head[1:], row[1:], strict=True):
        name = next(name for name in SHAPES if name.endswith(kind))
        assert float(shown.replace("\u2212", "-")) == pytest.approx(found.pairs[0].modules[name].cosine, abs=0.005)
    assert float(maps["a / b: norm1"][1][1]) == pytest.approx(found.norms[next(iter(SHAPES))][1], rel=0.05)


def test_nothing_from_outside_is_html() -> None:
    found = one(f"model.layers.0.{HOSTILE}", inner=1.0)
    undefined = f"model.layers.1.{HOSTILE}"
    modules = {**found.pairs[0].modules, undefined: Relation(square_second=1.0)}
    pair = PairInterference(first=HOSTILE, second="b", modules=modules, only_first=(), only_second=(undefined,))
    page = render_heatmap(
        Interference(
            labels=(HOSTILE, "b"),
            norms=dict.fromkeys(modules, (1.0, 1.0)),
            pairs=(pair,),
            sti=found.sti,
            total_sti=None,
        ),
        HOSTILE,
        {HOSTILE: HOSTILE},
    )
    tags = [tag for tag, _ in Reader(page).tags]
    assert tags.count("script") == 1
    assert not {"img", "link", "iframe"} & set(tags)
    assert page.count("alert(1)") == page.count("&lt;script&gt;alert(1)")


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page = render_heatmap(one("model.layers.0.q_proj"), "t", {})
    attributes = [attrs for _, attrs in Reader(page).tags]
    assert not any({"src", "href", "action"} & attrs.keys() for attrs in attributes)
    assert not re.search(r"url\(|@import|fetch\(|https?:", page)
    policy = next(attrs["content"] for attrs in attributes if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_what_is_undefined_is_said(tmp_path: Path) -> None:
    some = write_adapter_folder(tmp_path / "some", seed=1).path
    lone = write_adapter_folder(tmp_path / "lone", seed=2, shapes={"lm_head": (9, 20), **dict([*SHAPES.items()][:1])})
    page = render_heatmap(interference(for_comparison(Part(some), Part(lone.path))), "t", {})
    assert 'title="lm_head: undefined, only lone has it"' in page
    assert 'title="model.layers.0.self_attn.k_proj: undefined, only some has it"' in page
    rows = Reader(page).maps()["some / lone: cosine"]
    assert [row[0] for row in rows] == ["layer", "0", "other"]
    zero = write_adapter_folder(tmp_path / "zero", seed=3, zero=True).path
    render_heatmap(interference(for_comparison(Part(zero), Part(zero))), "t", {})


def test_many_facts_are_folded_but_there() -> None:
    facts = {f"fact {number}": f"<{number}>" for number in range(10)}
    page = render_heatmap(one("m.0.q", inner=1.0), "t", facts)
    assert "<summary>2 more</summary>" in page
    assert [cell for table in Reader(page).tables[:2] for row in table for cell in row] == [
        text for fact in facts.items() for text in fact
    ]
    assert "<details>" not in render_heatmap(one("m.0.q", inner=1.0), "t", dict([*facts.items()][:8]))


def test_one_adapter_alone_has_its_sizes(tmp_path: Path) -> None:
    only = write_adapter_folder(tmp_path / "only", seed=1).path
    maps = Reader(render_heatmap(interference(for_comparison(Part(only))), "t", {})).maps()
    assert list(maps) == ["only: norm"]


def test_colours_are_scaled_from_the_neutral_value() -> None:
    assert 'class="cell warm" style="--t:60%"' in render_heatmap(one("m.0.q", inner=-0.6), "t", {})  # cosine -.3 of .5
    assert 'class="cell cool" style="--t:60%"' in render_heatmap(one("m.0.q", inner=0.6), "t", {})
    assert 'class="cell warm" style="--t:75%"' in render_heatmap(
        one("m.0.q", differing=13, compared=20), "t", {}
    )  # .15 of .2
    page = render_heatmap(one("m.0.q", differing=3, compared=10), "t", {})
    assert 'class="cell cool" style="--t:100%"' in page
    assert ".3 agree" in page.replace("0.3", ".3")


@pytest.mark.parametrize(
    ("names", "rows", "kinds"),
    [
        (["model.layers.10.a.v_proj", "model.layers.9.a.q_proj"], ["9", "10"], ["q_proj", "v_proj"]),
        (["x.h.0.attn.c", "lm_head", "score"], ["0", "other"], ["c", "lm_head", "score"]),
        (["m.0.mlp.experts.0.up", "m.0.mlp.experts.1.up"], ["0"], ["mlp.experts.0.up", "mlp.experts.1.up"]),
        (["vision.blocks.0.q", "text.layers.0.q"], ["text.layers.0", "vision.blocks.0"], ["q"]),
        (["a.up", "b.up"], ["other"], ["a.up", "b.up"]),
    ],
)
def test_places(names: list[str], rows: list[str], kinds: list[str]) -> None:
    grid = layout(names)
    assert (grid.rows, grid.kinds) == (rows, kinds)
    assert len(set(grid.places.values())) == len(names)
