"""The heat map page in a real browser: the switch, the keyboard, both colour schemes, and no request to anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plyfold.merge.compare.heatmap import render_heatmap
from plyfold.merge.compare.interference import for_comparison, interference
from plyfold.merge.inputs import Part

from ...conftest import TINY_MODULES

pytestmark = pytest.mark.slow

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "<script>document.title = 'taken'</script><img src=https://example.com/x.png onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("no browser: install chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, as whom containers run tests.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, make_adapter: Any) -> Path:
    folder = tmp_path_factory.mktemp("page")
    adapters = [make_adapter(folder / name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    labels = ["1 structure", "2 brevity", HOSTILE]
    parts = for_comparison(*(Part(path, 1.0, label) for path, label in zip(adapters, labels, strict=True)))
    page = folder / "page.html"
    page.write_text(render_heatmap(interference(parts), "Merge of 1+2+3", {"method": "exact", HOSTILE: HOSTILE}))
    return page


class Opened:
    """A page with what it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.goto(file.as_uri())

    def shown(self) -> list[str]:
        return [str(text) for text in self.page.locator("figure:visible h2").all_inner_texts()]


def test_the_switch_shows_one_map_at_a_time(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    assert opened.shown() == ["1 structure / 2 brevity: cosine"]
    opened.page.get_by_label("Map").select_option(label="column overlap")
    assert opened.shown() == ["1 structure / 2 brevity: column overlap"]
    opened.page.get_by_label("Pair").select_option(index=2)
    assert opened.shown() == [f"2 brevity / {HOSTILE}: column overlap"]
    cells = opened.page.locator("figure:visible tbody td").all_inner_texts()
    assert len(cells) == len(TINY_MODULES)
    assert all(0 <= float(cell) <= 1 for cell in cells)
    assert opened.page.title() == "Merge of 1+2+3"
    assert (opened.requests, opened.errors) == ([page_file.as_uri()], [])


def test_cells_are_told_under_the_mouse_and_by_the_keyboard(browser: Any, page_file: Path) -> None:
    page = Opened(browser, page_file).page
    page.locator("figure:visible tbody td").nth(3).hover()
    assert page.locator("output").inner_text().startswith("model.layers.0.self_attn.o_proj: ")
    page.get_by_label("Map").focus()
    page.keyboard.press("Tab")
    assert page.locator("output").inner_text().startswith("model.layers.0.self_attn.q_proj: ")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):  # the last leads off the map and stays
        page.keyboard.press(key)
    assert page.locator("output").inner_text().startswith("model.layers.1.self_attn.k_proj: ")
    cell = page.get_by_role("table", name="cosine by layer and module kind").get_by_role("rowheader", name="1")
    assert cell.count() == 1


def test_without_script_every_map_is_there(browser: Any, page_file: Path) -> None:
    opened = Opened(browser, page_file, java_script_enabled=False)
    assert len(opened.shown()) == 3 * 7  # pairs, and the measures of each
    assert not opened.page.locator("#choice").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_stay_readable_on_every_colour(browser: Any, page_file: Path, scheme: str) -> None:
    """Contrast of ink on the cells of full colour, after WCAG 2: at least 4.5."""
    page = Opened(browser, page_file, color_scheme=scheme, java_script_enabled=True).page
    contrasts = page.evaluate(
        """() => {
          const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
          const luminance = colour => {
            canvas.fillStyle = colour
            canvas.fillRect(0, 0, 1, 1)
            const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(byte => byte / 255)
              .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
          }
          for (const each of document.querySelectorAll('figure')) each.hidden = false
          return [...document.querySelectorAll('.cell')].map(cell => {
            cell.style.setProperty('--t', '100%')
            const style = getComputedStyle(cell)
            const [low, high] = [luminance(style.color), luminance(style.backgroundColor)].sort((a, b) => a - b)
            return (high + 0.05) / (low + 0.05)
          })
        }"""
    )
    assert len(contrasts) == 3 * 7 * len(TINY_MODULES)
    assert len({round(contrast, 2) for contrast in contrasts}) == 3  # warm, cool and sequential are drawn
    assert min(contrasts) >= 4.5
