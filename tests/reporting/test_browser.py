"""The pages in a real browser without a window: drawn, sortable, readable on a phone and in the dark, and silent on the
network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.run_folders import HOSTILE, QUERIES, write_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
wait = pytest.importorskip("selenium.webdriver.support.wait", reason="selenium is not installed")
pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SHOWN = HOSTILE.replace("\u202e", "\\u202e")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    server = shutil.which("chromedriver")
    if browser is None or server is None:
        pytest.skip(f"needs {' or '.join(BROWSERS)} and chromedriver on PATH; none is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(server))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from jasper_jax.reporting.write import write_comparison, write_report

    place = tmp_path_factory.mktemp("pages")
    runs = [write_run(place / "a", "first"), write_run(place / "b", "second", seed=1)]
    write_report(runs[0], place / "report.html")
    write_comparison(runs, place / "compare.html")
    return {"report": place / "report.html", "compare": place / "compare.html"}


def show(driver: Any, page: Path, width: int, theme: str) -> None:
    """Open ``page`` in an empty log, at a width and in a theme."""
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    run(driver, "window.leaving = true")
    driver.get(page.as_uri())
    # On a loaded machine it can return before the new page is there, or before its script has run.
    there = "return document.readyState === 'complete' && !window.leaving"
    wait.WebDriverWait(driver, 60).until(lambda driver: run(driver, there))


def run(driver: Any, script: str, *arguments: Any) -> Any:
    return driver.execute_script(script, *arguments)


@pytest.mark.parametrize(
    ("page", "width", "theme"),
    [("report", 390, "dark"), ("report", 1280, "light"), ("compare", 390, "light"), ("compare", 1280, "dark")],
)
def test_a_page_is_drawn_without_an_error_and_without_the_network(
    driver: Any, pages: dict[str, Path], page: str, width: int, theme: str
) -> None:
    show(driver, pages[page], width, theme)
    assert driver.get_log("browser") == []
    requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    assert pages[page].as_uri() in urls
    assert [url for url in urls if not url.startswith(("data:", pages[page].as_uri(), "chrome"))] == []

    drawn = run(
        driver,
        """return [...document.querySelectorAll(".chart")].map((chart) => [
             chart.id, chart.querySelectorAll(".trace, .hm image, .hm path").length, chart.clientWidth,
             chart.clientHeight, chart.querySelector(".main-svg").getBoundingClientRect().height])""",
    )
    assert len(drawn) >= 4
    for chart, traces, across, place, height in drawn:
        assert traces > 0, chart
        assert across <= width, chart
        assert height == pytest.approx(place, abs=1), chart
    assert run(driver, "return document.documentElement.scrollWidth") <= width  # a wide table scrolls in its own frame
    assert run(driver, "return typeof window.broken") == "undefined"
    paper, ink = run(
        driver,
        "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color].map((c) => c.match(/\\d+/g))",
    )
    assert (int(paper[0]) < 128 < int(ink[0])) == (theme == "dark")


def column(driver: Any, table: int, number: int) -> list[str]:
    return run(
        driver,
        "return [...document.querySelectorAll('table')[arguments[0]].tBodies[0].rows]"
        ".map((row) => row.cells[arguments[1]].textContent)",
        table,
        number,
    )


def test_a_click_on_a_header_sorts(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["report"], 1280, "light")
    headers = driver.find_elements("css selector", "table:first-of-type thead th")
    titles = [header.text.strip("\u2195\u2191\u2193\xa0 ") for header in headers]
    lost = titles.index("lost")
    before = [int(text) for text in column(driver, 0, lost)]
    assert sorted(before) != before
    click = "document.querySelectorAll('table')[0].tHead.rows[0].cells[arguments[0]].firstElementChild.click()"
    run(driver, click, lost)
    assert [int(text) for text in column(driver, 0, lost)] == sorted(before, reverse=True)
    run(driver, click, lost)
    assert [int(text) for text in column(driver, 0, lost)] == sorted(before)
    assert headers[lost].get_attribute("aria-sort") == "ascending"
    against = titles.index("against")
    run(driver, click, against)
    assert column(driver, 0, against) == sorted(column(driver, 0, against))
    assert headers[lost].get_attribute("aria-sort") == "none"


def test_a_table_is_copied_as_numbers(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["report"], 1280, "light")
    run(
        driver,
        """Object.defineProperty(navigator, "clipboard", { value: { writeText: async (t) => { window.copied = t; } } });
           document.querySelector("button.copy").click()""",
    )
    lines = run(driver, "return window.copied").split("\n")
    assert lines[0].split("\t")[:4] == ["test", "student", "against", "queries"]
    assert len(lines) == 5
    for line in lines[1:]:
        test, _, _, queries, gained, lost, equal, *bounds = line.split("\t")
        assert test == "forum <i>"
        assert int(float(gained)) + int(float(lost)) + int(float(equal)) == int(float(queries)) == QUERIES
        assert -1 < float(bounds[1]) <= float(bounds[0]) <= float(bounds[2]) < 1


def test_queries_gained_and_lost_are_shown_with_their_passages(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["report"], 390, "light")
    read = """return [...document.querySelectorAll("#browser details")].map((card) => [
        card.querySelector(".delta").textContent, card.querySelector("b").textContent,
        [...card.querySelectorAll("ol")].map((list) => list.children.length),
        [...card.querySelectorAll("ol")].map((list) => list.querySelectorAll(".answer").length)])"""
    lost = run(driver, read)
    assert 0 < len(lost) <= 4
    for delta, query, passages, answers in lost:
        assert delta.startswith("−")
        assert query.startswith(SHOWN)
        assert passages == [10, 10]
        assert answers in ([0, 1], [1, 1])  # lost: the teacher has it, higher
    choose = """const select = document.querySelectorAll("#browser select")[0];
        select.value = "1"; select.dispatchEvent(new Event("change"));"""
    run(driver, choose)
    gained = run(driver, read)
    assert gained
    assert {delta[0] for delta, *_ in gained} == {"+"}
    assert not {query for _, query, *_ in gained} & {query for _, query, *_ in lost}


def test_a_choice_draws_another_figure(driver: Any, pages: dict[str, Path]) -> None:
    show(driver, pages["report"], 1280, "dark")
    title = "return document.querySelector('#chart-density .xtitle').textContent"
    assert run(driver, title).endswith("teacher a")
    run(
        driver,
        """const select = document.querySelector('select[data-for="density"]');
           select.value = "1"; select.dispatchEvent(new Event("change"));""",
    )
    assert run(driver, title).endswith("teacher b")
    nearest = "return [...document.querySelectorAll('#neighbours h3')].map((h) => h.textContent)"
    assert run(driver, nearest) == ["student (24)", "teacher a (32)"]
    assert driver.get_log("browser") == []
