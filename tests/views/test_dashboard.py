"""The dashboard on invented runs: pages without a browser, then clicks, links and reloads in a real one.

pytest tests/views
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.views import example_runs as examples
from tests.views.page_words import said

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app.py"
PATIENCE = 20_000  # milliseconds, for one thing to appear


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    examples.write_example_runs(folder)
    return folder


def opened(folder: Path, page: str, monkeypatch: pytest.MonkeyPatch, **address: str) -> AppTest:
    """The app after its first page load at this address."""
    monkeypatch.setenv("HEADSCOPE_RUNS", str(folder))
    app = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.switch_page(f"views/{page}.py")
    app.run()
    assert not app.exception, [error.value for error in app.exception]
    return app


def test_an_empty_folder_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in ("runs", "heads", "head", "needles", "ablation", "sinks", "roles", "pairs"):
        assert "headscope demo" in said(opened(tmp_path, page, monkeypatch)), page


def test_a_broken_run_folder_is_one_sentence_beside_the_runs_that_can_be_read(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(runs, "runs", monkeypatch)
    assert [examples.BROKEN in str(warning.value) for warning in app.warning] == [True]
    assert list(app.dataframe[0].value["id"]) == [examples.ABLATION, examples.RETRIEVAL]


def test_a_grid_states_its_model_its_n_and_its_uncertainty(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = said(opened(runs, "heads", monkeypatch, run=examples.RETRIEVAL))
    assert "synthetic" in words
    assert "n = 10" in words
    assert "95% over prompts" in words


def test_a_head_that_the_run_lacks_and_a_name_that_is_none_get_a_sentence(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(runs, "heads", monkeypatch, run=examples.RETRIEVAL)
    app.text_input[0].set_value("L99H0").run()
    assert "L99H0 does not exist in this run" in app.error[0].value
    app = opened(runs, "head", monkeypatch, run=examples.RETRIEVAL, head="nonsense")
    assert "not the name of a head" in app.error[0].value


def test_next_and_previous_walk_over_the_heads_and_stop_at_the_ends(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(runs, "head", monkeypatch, run=examples.RETRIEVAL, head="L0H3")
    buttons = {button.label: button for button in app.button}
    buttons["Next →"].click().run()
    assert app.title[0].value == "Head L1H0"
    assert app.query_params["head"] in ("L1H0", ["L1H0"])
    app = opened(runs, "head", monkeypatch, run=examples.RETRIEVAL, head="L0H0")
    disabled = {button.label: button.disabled for button in app.button}
    assert (disabled["← Previous"], disabled["Next →"]) == (True, False)


def test_a_link_to_a_case_that_the_run_lacks_says_so_instead_of_showing_another_in_silence(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(runs, "head", monkeypatch, run=examples.RETRIEVAL, head="L3H1", case="gone")
    assert any("'gone'" in str(warning.value) for warning in app.warning)


def test_failures_are_counted_and_shown_first(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(runs, "needles", monkeypatch, run=examples.RETRIEVAL)
    assert app.subheader[0].value == "2 of 12 failed"
    verdicts = [text.value for text in app.markdown if "recall" in text.value]
    assert [("failed" in verdict) for verdict in verdicts] == [True] * 2 + [False] * 10


def test_a_page_for_another_command_offers_the_run_that_it_can_show(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(runs, "heads", monkeypatch, run=examples.ABLATION)
    assert "this page shows retrieval" in app.info[0].value
    app.button[0].click().run()
    assert not app.info
    assert app.dataframe


def test_a_run_without_answers_yet_says_how_to_finish_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / examples.RETRIEVAL
    shutil.copytree(runs / examples.RETRIEVAL, path)
    (path / "heads.parquet").unlink()
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"stopped"'))
    assert "--resume" in opened(tmp_path, "heads", monkeypatch).error[0].value
    assert opened(tmp_path, "needles", monkeypatch).subheader[0].value == "2 of 12 failed"


def test_a_run_in_which_no_case_was_answered_says_so_on_every_page_of_heads(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / examples.RETRIEVAL
    shutil.copytree(runs / examples.RETRIEVAL, path)
    table = pd.read_parquet(path / "heads.parquet")
    table[:0].to_parquet(path / "heads.parquet", index=False)
    for page in ("heads", "head"):
        assert "no case was answered" in opened(tmp_path, page, monkeypatch).error[0].value


def test_damaged_numbers_are_one_sentence(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / examples.RETRIEVAL
    shutil.copytree(runs / examples.RETRIEVAL, path)
    (path / "heads.parquet").write_bytes(b"PAR1")
    assert "can't be read" in opened(tmp_path, "heads", monkeypatch).error[0].value


@pytest.fixture(scope="module")
def address(runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    with dashboard(runs) as url:
        yield url


def test_the_command_serves_at_the_first_start_of_a_machine_without_asking_anything(
    runs: Path, tmp_path: Path, port: int, started: Callable[[Any, str], None]
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "analysis.cli", "ui", "--port", str(port), "--out", str(runs)],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path), "BROWSER": "true"},  # no saved settings; `true` stands for a browser
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        started(server, f"http://localhost:{port}")
        os.killpg(server.pid, signal.SIGINT)  # Ctrl-C reaches the command and its server
        assert server.wait(timeout=20) == 0
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def desktop(browser: Any) -> Iterator[Any]:
    """One for all tests: what the first tab downloads, the later ones have."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context
    context.close()


@pytest.fixture
def tab(desktop: Any) -> Iterator[Any]:
    page = desktop.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


@pytest.mark.browser
def test_runs_are_listed_and_link_to_their_pages(address: str, tab: Any) -> None:
    tab.goto(f"{address}/runs")
    tab.get_by_text(f"{examples.BROKEN} is half written").wait_for()
    assert examples.RETRIEVAL in tab.get_by_test_id("stDataFrame").locator("table").inner_text(timeout=PATIENCE)
    tab.get_by_role("link", name="Open Ablation").click()
    tab.get_by_role("heading", name="Ablation", exact=True).wait_for()
    assert examples.ABLATION in tab.url


@pytest.mark.browser
def test_a_click_on_a_square_opens_that_head_and_its_link_restores_it(address: str, tab: Any, browser: Any) -> None:
    tab.goto(f"{address}/heads?run={examples.RETRIEVAL}")
    tab.locator('path[aria-label*="L4H2"]').click()
    tab.get_by_role("heading", name="Head L4H2").wait_for()
    tab.wait_for_url(re.compile(r"head=L4H2.*case="))
    tab.locator("mark", has_text="lantern").nth(1).wait_for()  # in the answer, and in the prompt
    copied, marks = tab.url, tab.locator("mark").all_inner_texts()
    tab.reload()
    tab.get_by_role("heading", name="Head L4H2").wait_for()
    stranger = browser.new_context().new_page()
    stranger.goto(copied)
    stranger.get_by_role("heading", name="Head L4H2").wait_for(timeout=PATIENCE)
    stranger.locator("mark", has_text="lantern").nth(1).wait_for(timeout=PATIENCE)
    assert stranger.locator("mark").all_inner_texts() == marks
    assert stranger.url == copied
    stranger.context.close()


@pytest.mark.browser
def test_a_click_on_a_cell_shows_its_cases_and_stays_in_the_link(address: str, tab: Any) -> None:
    tab.goto(f"{address}/needles?run={examples.RETRIEVAL}")
    tab.locator('path[aria-label*="answered: 0/2"]').first.click()
    tab.get_by_role("heading", name="2 of 2 failed").wait_for()
    tab.wait_for_url(re.compile("cell=512-0.5"))
    tab.reload()
    tab.get_by_role("heading", name="2 of 2 failed").wait_for()


@pytest.mark.browser
def test_the_ablation_page_shows_its_table_and_holds_the_meaning_in_the_link(address: str, tab: Any) -> None:
    tab.goto(f"{address}/ablation?run={examples.ABLATION}&meaning=output_zero%2Fdecode&k=2")
    table = tab.get_by_test_id("stDataFrame").first.locator("table")
    table.get_by_text("0.50 [0.30, 0.70]").first.wait_for(state="attached")
    assert tab.get_by_text("Top 2 heads off", exact=True).is_visible()
    assert "output_zero" in tab.url


@pytest.mark.browser
def test_on_a_phone_no_page_is_wider_than_the_screen(address: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    for path, run in (("heads", examples.RETRIEVAL), ("head", examples.RETRIEVAL), ("ablation", examples.ABLATION)):
        page.goto(f"{address}/{path}?run={run}")
        page.get_by_test_id("stDataFrame").first.wait_for(timeout=PATIENCE)
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390, path
    context.close()
