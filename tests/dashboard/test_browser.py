"""The pages in a real browser: no error, no request to elsewhere, and everything works."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from evomerge.dashboard.kept_page import write_report
from evomerge.report import read_run
from tests.dashboard.conftest import HOSTILE, TASK, write_config

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)"
)
PLACES = {
    "runs": "/",
    "run": "/run/night",
    "trial": "/run/night/trial/2?against=1",
    "compare": "/compare?trials=night/0,night/1,night/2",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, site: str) -> Iterator[Page]:
    """A page whose errors and requests to elsewhere fail the test."""
    context = browser.new_context(accept_downloads=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)

    def request(asked: Any) -> None:
        if not asked.url.startswith((site, "data:", "blob:", "file:")):
            wrong.append(f"outside request {asked.url}")

    opened.on("request", request)
    yield opened
    context.close()
    assert wrong == []


def visit(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", PLACES)
def test_pages_load_are_accessible_and_fit(
    page: Page, site: str, name: str, width: int, scheme: Any
) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    visit(page, site + PLACES[name])
    assert page.title() != "taken"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for figure in page.query_selector_all("figure:not([hidden])"):
        assert figure.query_selector("canvas") is not None
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_filters_and_sorting_are_links(page: Page, site: str, folder: Path) -> None:
    visit(page, f"{site}/run/night")
    page.select_option("select[name=state]", "complete")
    page.fill("input[name=name]", "trial")
    page.click(".filters button")
    page.wait_for_selector("body[data-ready=yes]")
    report = read_run(folder / "runs" / "night")
    wanted = {r.name for r in report.records if r.state == "complete" and "trial" in r.name}
    rows = "#rows tbody th a"
    assert set(page.locator(rows).all_inner_texts()) == wanted
    page.click("#rows thead a:has-text('seconds')")
    page.wait_for_selector("th[aria-sort=descending]")
    order = page.locator(rows).all_inner_texts()
    address = page.url
    visit(page, address)  # the link restores the view
    assert page.locator(rows).all_inner_texts() == order
    seconds = {r.name: sum(r.seconds.values()) for r in report.records}
    assert order == sorted(order, key=lambda name: -seconds[name])
    assert page.input_value("input[name=name]") == "trial"


def test_ticked_trials_are_compared(page: Page, site: str) -> None:
    visit(page, f"{site}/run/night")
    for number in (0, 1, 2):
        page.check(f"input[name=trial][value='{number}']")
    page.click("text=Compare the ticked ones")
    page.wait_for_selector("body[data-ready=yes]")
    text = page.inner_text("main")
    assert "night/0" in text
    assert "night/2" in text
    assert TASK in text  # as text
    page.click("a[href*='documents']:has-text('+')")
    page.wait_for_selector("text=documents differ")
    assert HOSTILE in page.inner_text("#documents") or "0 documents differ" in page.content()


def test_keys_reach_the_content(page: Page, site: str) -> None:
    visit(page, f"{site}/run/night")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_figures_and_tables_are_saved(page: Page, site: str, tmp_path: Path) -> None:
    visit(page, f"{site}/run/night")
    starts = {"png": b"\x89PNG", "svg": b"<svg"}
    for kind, start in starts.items():
        with page.expect_download() as waiting:
            page.locator(f"[data-save={kind}]").first.click()
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        assert saved.name.endswith(f".{kind}")
        assert saved.read_bytes().startswith(start)
    with page.expect_download() as waiting:
        page.locator("figure a[download]").first.click()
    assert waiting.value.suggested_filename.endswith(".csv")


def test_a_point_leads_to_its_trial_and_tooltips_are_text(page: Page, site: str) -> None:
    visit(page, f"{site}/run/night")
    page.evaluate(
        """() => {
        const chart = echarts.getInstanceByDom(document.querySelector(".plot"));
        chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: 0 });
        }"""
    )
    assert page.title() != "taken"
    visit(page, f"{site}/run/night/trial/20")
    for plot in range(len(page.query_selector_all(".plot"))):
        page.evaluate(
            """(plot) => {
            const chart = echarts.getInstanceByDom(document.querySelectorAll(".plot")[plot]);
            chart.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: 0 });
            }""",
            plot,
        )
    assert page.query_selector("main img") is None
    assert page.title() != "taken"


def test_a_trial_that_is_made_meanwhile_appears(page: Page, site: str, folder: Path) -> None:
    config = write_config(folder, "later", trials=6)
    words = [sys.executable, "-m", "evomerge", "search", str(config), "--trials"]
    subprocess.run([*words, "4"], check=True, capture_output=True)
    page.wait_for_timeout(2000)
    visit(page, f"{site}/run/later")
    before = page.inner_text("#rows > p")
    with subprocess.Popen([*words, "6"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        page.wait_for_function(
            "(before) => document.querySelector('#rows > p').innerText !== before",
            arg=before,
            timeout=60_000,
        )
    assert "updated" in page.inner_text("#live")


def test_the_report_is_drawn_without_a_server(page: Page, folder: Path, tmp_path: Path) -> None:
    (path,) = write_report(folder / "runs" / "night", tmp_path / "night.html")
    visit(page, path.as_uri())
    assert page.title() != "taken"
    figures = page.query_selector_all("figure")
    assert len(figures) > 3
    assert all(figure.query_selector("canvas") is not None for figure in figures)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
