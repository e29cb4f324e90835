"""The pages that persons open, in a real browser: the report of a real run, and the review of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from jobs.cli import main
from jobs.report import output_at
from pipeline.review import Review, ReviewServer
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("ray_session")

NASTY = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
IDS = ("coco-285", "coco-20247", "coco-2149", "coco-6012", "coco-159269", "nagasaki-boats", "dust-bowl-home")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with restored, kept, review and failed rows, and a caption and an id that would like to be HTML."""
    folder = tmp_path_factory.mktemp("run")
    rows = [row for row in pq.read_table(ROOT / "samples/archive").to_pylist() if row["id"] in IDS]
    rows[0]["caption"] = [NASTY]
    rows[1]["id"] = f'"{NASTY}'
    rows.append({"id": "broken", "image": b"no image", "caption": [NASTY]})
    (folder / "source").mkdir()
    schema = pq.read_schema(ROOT / "samples/archive/archive.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "source/part-0.parquet")
    recipe = str(ROOT / "samples/recipe.yaml")
    words = ["--recipe", recipe, "--source", str(folder / "source"), "--output", str(folder / "out")]
    assert main(["restore", *words]) == 3
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console says, and what the page asks of any network."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()


@pytest.fixture
def report(page: Page, output: Path, complaints: list[str]) -> Page:
    address = (output / "out/report.html").as_uri()
    page.on("request", lambda asked: None if asked.url.startswith(("data:", address)) else complaints.append(asked.url))
    page.goto(address)
    return page


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    files = (output / "out/data/_symlink_format_manifest/manifest").read_text().split()
    return {row["id"]: row for file in files for row in pq.ParquetFile(file).read().to_pylist()}


def shown_until(row: Locator) -> str:
    return str(row.locator(".over").evaluate("image => getComputedStyle(image).clipPath"))


def test_the_report_asks_for_nothing_and_runs_nothing_of_others(report: Page, complaints: list[str]) -> None:
    assert report.title().startswith("Conservator: run")
    assert NASTY in report.inner_text("#gallery ~ .gallery, .gallery")
    assert report.locator("article script, article img:not([src^='data:image/jpeg'])").count() == 0
    report.wait_for_timeout(200)
    assert complaints == []


def test_the_report_is_small_enough_to_send(output: Path) -> None:
    assert (output / "out/report.html").stat().st_size < 15e6


def test_the_slider_moves_by_mouse_and_by_keyboard(report: Page) -> None:
    row = report.locator("article:has(.compare)").first
    slider = row.locator("input[type=range]")
    row.scroll_into_view_if_needed()
    box = row.locator(".compare").bounding_box()
    assert box is not None
    assert "50%" in shown_until(row)
    report.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    assert 75 < float(slider.input_value()) < 85
    before = float(slider.input_value())
    slider.focus()
    report.keyboard.press("ArrowLeft")
    assert float(slider.input_value()) == before - 1
    report.keyboard.press("Home")
    assert "0%" in shown_until(row)
    assert slider.get_attribute("aria-valuetext") == "0 % before, 100 % after"
    assert slider.get_attribute("aria-label")


def test_filters_leave_the_rows_that_match_all_of_them(report: Page, output: Path) -> None:
    rows = rows_of(output)
    count = report.locator("#count")
    assert f"of {len(rows) - 1} rows" in count.inner_text()
    report.get_by_label("review", exact=True).check()
    review = [row for row in rows.values() if row["status"] == "review"]
    assert report.locator("article:visible").count() == len(review) > 0
    report.get_by_label("kept", exact=True).check()
    kept = [row for row in rows.values() if row["status"] == "kept"]
    assert report.locator("article:visible").count() == len(review) + len(kept)
    report.get_by_label("noise", exact=True).check()
    noisy = [row for row in [*review, *kept] if row["noise_sigma"] > 4]
    assert report.locator("article:visible").count() == len(noisy)
    assert count.inner_text() == f"{len(noisy)} of {len(rows) - 1} rows shown"
    report.get_by_role("button", name="Show all").click()
    report.wait_for_timeout(50)
    assert report.locator("article:visible").count() == len(rows) - 1


def test_everything_can_be_reached_and_named_without_eyes_or_mouse(report: Page) -> None:
    unnamed = report.evaluate(
        "[...document.querySelectorAll('input, button, a, summary, img, svg')].filter(one => "
        "!(one.ariaLabel || one.alt || one.labels?.length || one.textContent.trim())).map(one => one.outerHTML)"
    )
    assert unnamed == []
    seen = set()
    for _ in range(15):
        report.keyboard.press("Tab")
        seen.add(report.evaluate("document.activeElement.tagName + (document.activeElement.type || '')"))
    assert {"A", "SUMMARY", "INPUTcheckbox"} <= seen


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_screens_and_follows_their_colours(report: Page, width: int, scheme: Any) -> None:
    report.set_viewport_size({"width": width, "height": 800})
    report.emulate_media(color_scheme=scheme)
    assert report.evaluate("document.documentElement.scrollWidth") == width
    ground = report.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_failures_stand_with_their_cause_and_examples(report: Page) -> None:
    text = report.locator("section[aria-labelledby=failures]").inner_text()
    assert "decode: UnreadableImage: 1 rows" in text and "broken" in text


def test_the_report_of_a_run_can_be_made_again_from_the_table(output: Path) -> None:
    first = (output / "out/report.html").read_text()
    summary = json.loads((output / "out/summary.json").read_text())
    (output / "out/report.html").unlink()
    (output / "out/summary.json").unlink()
    assert main(["report", str(output / "out/data")]) == 0
    assert (output / "out/report.html").read_text() == first
    assert json.loads((output / "out/summary.json").read_text()) == summary
    again = output / f"out/reports/{summary['run_id']}/report.html"
    assert again.read_text() == first
    assert main(["report", str(output / "out"), "--run", "never-was"]) == 2


@pytest.fixture
def server(output: Path) -> Iterator[ReviewServer]:
    place, recipe = output_at(str(output / "out"), [])
    server = ReviewServer(Review(place, recipe, "Ada"), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def posted(address: str, body: dict[str, str] | bytes, **headers: str) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + "decisions", data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_who_knows_the_address_can_see_and_decide(server: ReviewServer, output: Path) -> None:
    result = next(row["result_id"] for row in rows_of(output).values() if row["status"] == "review")
    decision = {"result": result, "decision": "accepted"}
    other = server.url.replace(server.path, "/")
    assert posted(other, decision) == 404
    assert posted(server.url, decision, Host="museum.example") == 404
    assert posted(server.url, {"result": "0" * 64, "decision": "accepted"}) == 404
    assert posted(server.url, decision | {"decision": "burnt"}) == 400
    assert posted(server.url, b"[]") == 400
    assert posted(server.url, b"{") == 400
    assert posted(server.url, b" " * 20_000) == 413
    for address in (other, other + "x" * 22 + "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address)
    with urllib.request.urlopen(server.url) as answer:
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert server.review.close() == 0


def test_decisions_made_in_the_browser_are_honoured_by_the_next_run(
    page: Page, server: ReviewServer, output: Path, complaints: list[str]
) -> None:
    before = rows_of(output)
    waiting = {row["result_id"]: name for name, row in before.items() if row["status"] == "review"}
    assert len(waiting) >= 3
    page.goto(server.url)
    rows = page.locator("article[data-result]")
    assert rows.count() == len(waiting)
    assert page.title() == "Conservator: review"
    accepted, rejected = (waiting[rows.nth(place).get_attribute("data-result") or ""] for place in (0, 1))
    rows.nth(0).get_by_role("button", name="Accept").click()
    page.locator("article[data-decision=accepted]").wait_for()
    rows.nth(1).get_by_label("Note").fill("too smooth")
    rows.nth(1).focus()
    page.keyboard.press("r")
    page.locator("article[data-decision=rejected]").wait_for()
    page.reload()
    assert page.locator("article[data-result]").count() == len(waiting) - 2
    assert complaints == []
    assert server.review.close() == 2
    assert len(list((output / "out/reviews").glob("*.parquet"))) == 1
    recipe = str(ROOT / "samples/recipe.yaml")
    words = ["--recipe", recipe, "--source", str(output / "source"), "--output", str(output / "out")]
    assert main(["restore", *words]) == 0
    after = rows_of(output)
    assert len(after) == len(before)
    assert after[accepted]["status"] == "restored"
    assert after[accepted]["image_sha256"] == before[accepted]["image_sha256"]
    assert after[accepted]["reasons"][0].startswith("accepted by Ada on 20")
    original = {row["id"]: row["image"] for row in pq.read_table(output / "source").to_pylist()}
    assert after[rejected]["status"] == "kept"
    assert after[rejected]["image"] == original[rejected]
    assert "too smooth" in after[rejected]["reasons"][0]
    others = before.keys() - {accepted, rejected}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert main(["restore", *words]) == 0
    assert rows_of(output) == after
    assert main(["restore", *words, "--fresh"]) == 3
    again = rows_of(output)
    assert {name: row["status"] for name, row in again.items()} == {name: row["status"] for name, row in after.items()}


def test_the_command_serves_until_it_is_told_to_stop(output: Path) -> None:
    words = [sys.executable, "-m", "jobs.cli", "review", str(output / "out"), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().split()[0]
    with urllib.request.urlopen(url) as answer:
        assert b"wait for a decision" in answer.read()
    process.terminate()
    assert process.wait(20) == 0
    assert "rows are decided" in process.stdout.read()


def test_a_place_without_a_run_cannot_be_reviewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
