"""A reader's walk through the whole dashboard in a real browser, on the default model and on our own that sees.

The runs are real: the example that ships, and maps of a text and of a picture that the command line makes. The
intervention is built, queued, run and read on the pages.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import data
from analysis.cli import main
from analysis.maps.exact import weight
from analysis.runs import Run, list_runs
from probes.heads import parse_head
from views.pages import pages

pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.timeout(900)]
PATIENCE, JOB = 60_000, 240_000  # milliseconds, on a busy machine
TEXT = "The keeper hid a green lantern under the stairs. The sea was calm, and the keeper slept. " * 6
HEAD = "L18H6"  # of the default model: the strongest retrieval head of the example that ships


def asked(folder: Path, *line: str) -> Run:
    with pytest.raises(SystemExit) as ended:
        main([*line, "--out", str(folder), "--device", "cpu", "--json"])
    assert not ended.value.code
    return list_runs(folder)[0][0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example that ships, then a map of a text in the layer of its strongest head, then one of a picture."""
    runs = tmp_path_factory.mktemp("walk") / "runs"
    shutil.copytree(Path(data.__file__).with_name("example_runs"), runs, ignore=shutil.ignore_patterns("*.md"))
    asked(runs, "map", "--prompt", TEXT, "--layers", "18")
    asked(runs, "map", "--model", "emoji-llava", "--layers", "17", "--new-tokens", "12")
    return runs


@pytest.fixture(scope="module")
def address(
    folder: Path,
    dashboard: Callable[[Path], AbstractContextManager[str]],
    at_work: Callable[[Path], AbstractContextManager[None]],
) -> Iterator[str]:
    with at_work(folder), dashboard(folder) as found:
        yield found


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened, complaints = context.new_page(), []
    opened.set_default_timeout(PATIENCE)
    opened.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    assert complaints == []
    context.close()


def run_of(folder: Path, command: str, model: str = "smollm2-135m") -> Run:
    return next(
        run
        for run in list_runs(folder)[0]
        if (run.manifest["command"], run.manifest["model"]["name"]) == (command, model)
    )


def test_from_the_first_page_to_a_heads_map_its_intervention_and_the_comparison(
    folder: Path, address: str, page: Any
) -> None:
    retrieval, text = run_of(folder, "retrieval"), run_of(folder, "map")

    page.goto(address)
    page.get_by_role("heading", name="What the newest runs answer").wait_for()
    page.get_by_test_id("stMain").get_by_role("link", name="Heads").click()

    page.get_by_role("heading", name="Heads", exact=True).wait_for()
    page.wait_for_url(re.compile(f"run={retrieval.id}"))
    page.get_by_text("Filter heads").click()
    page.get_by_role("textbox", name="By name").fill("L18")
    page.keyboard.press("Enter")
    page.get_by_text("9 of 270 heads").wait_for()
    page.get_by_role("textbox", name="Open a head").fill(HEAD)
    page.keyboard.press("Enter")

    page.get_by_role("heading", name=f"Head {HEAD}").wait_for()
    page.get_by_role("heading", name="What it copied").wait_for()
    page.get_by_role("link", name=re.compile("on the map")).first.click()

    page.get_by_role("heading", name="Map", exact=True).wait_for()
    page.wait_for_url(re.compile(f"/map\\?run={text.id}"))
    page.get_by_role("button", name="Zoom in", exact=True).click()
    page.wait_for_url(re.compile("queries="))
    page.locator("a[title^='position 40:']").click()
    page.wait_for_url(re.compile("query=40"))
    said = page.get_by_text(re.compile(r"query 40\b.*\(key \d+\)")).first.inner_text()
    key, exact = re.search(r"\(key (\d+)\)\D*([\d.]+) of its attention", said).groups()  # type: ignore[union-attr]
    assert weight(text, parse_head(HEAD), 40, int(key)) == pytest.approx(float(exact), abs=1e-6)

    stranger = page.context.new_page()
    stranger.goto(page.url)
    stranger.get_by_text(f"{exact} of its attention").first.wait_for(timeout=PATIENCE)
    assert stranger.url == page.url
    stranger.close()

    page.get_by_role("button", name="Change this head").click()
    page.get_by_role("heading", name="Bench").wait_for()
    heads = page.get_by_role("textbox", name="Heads", exact=True)
    assert heads.input_value() == HEAD
    heads.fill(f"{HEAD} L17H4")
    heads.press("Enter")
    page.get_by_text(re.compile(r"headscope intervene .*L17H4")).wait_for()
    page.goto(page.url + "&tasks=copying(length=16)&count=3&controls=1")
    page.get_by_text(re.compile(r"--count 3")).wait_for()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("link", name=re.compile("Open Bench")).wait_for(timeout=JOB)
    page.get_by_role("link", name=re.compile("Open Bench")).click()

    page.get_by_role("heading", name="What moved, and what held").wait_for()
    done = run_of(folder, "intervene")
    assert done.finished
    [point] = done.summary()["tasks"]["copying(length=16)"]["points"]
    assert sorted(point["heads"]) == ["L17H4", HEAD]
    page.wait_for_url(re.compile(f"run={done.id}"))
    page.reload()
    page.get_by_role("heading", name="What moved, and what held").wait_for()


def test_a_word_of_an_answer_is_laid_over_its_picture(folder: Path, address: str, page: Any) -> None:
    run = run_of(folder, "map", "emoji-llava")
    page.goto(f"{address}/map?run={run.id}")
    page.get_by_role("link", name="Lay it over the picture").click()
    page.get_by_role("heading", name="Image", exact=True).wait_for()
    page.locator('path[aria-label*="patch: "]').nth(99).wait_for(state="attached")
    last = run.cases()[0]["tokens"] - 1
    page.locator(f'a[title^="position {last}:"]').click()
    page.wait_for_url(re.compile(f"query={last}"))
    page.get_by_role("button", name=re.compile("Change")).first.wait_for()


def test_every_page_says_something_with_the_runs_at_hand(address: str, page: Any) -> None:
    for name, each in pages().items():
        page.goto(f"{address}/{'' if name == 'home' else name}")
        title = "headscope" if name == "home" else each.title
        page.get_by_role("heading", name=re.compile(f"^{title}")).first.wait_for()
        page.wait_for_function("document.querySelector('[data-testid=stMain]').innerText.length > 80")
