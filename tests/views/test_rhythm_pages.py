"""The page Rhythm, on a run whose evidence is invented."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.rhythm.marks import Marks
from analysis.rhythm.showing import ShownTrace
from analysis.runs import OpenRun, list_runs
from probes.errors import HeadscopeError
from tests.views import example_rhythm as example
from tests.views.page_words import html_of, said
from views import rhythm_charts, trace, trace_tables
from views.trace import Piece

APP = Path(__file__).resolve().parents[2] / "app.py"
PAGES = {"light": ((255, 255, 255), (49, 51, 63)), "dark": ((14, 17, 23), (250, 250, 250))}  # Streamlit's page and ink
READABLE = 4.5  # contrast that WCAG asks of text, level AA


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    example.write_rhythm(folder)
    return folder


def test_the_page_says_its_traces_its_heads_and_its_couplings_beside_the_papers(opened: Callable[..., AppTest]) -> None:
    app = opened("rhythm", "rhythm")
    assert not app.warning
    assert "**4 traces**: 6 local heads and 6 global ones" in said(app)
    assert "are sink heads" in said(app)
    assert "shop-99 (3)" in said(app)
    couplings: Any = app.dataframe[0].value.set_index("coupling")
    lag = couplings.loc["WAAD peaks with an FAI peak at or just after"]
    assert (lag["verdict"], lag["paper's lift"]) == ("not shown", "+42%")  # four traces are too few
    assert lag["observed"].startswith("1 [")
    assert "Anna has 0 apples\nand <i>buys</i> some" in said(app)


def test_a_trace_opens_at_its_clearest_plan_and_a_link_at_the_token_it_names(opened: Callable[..., AppTest]) -> None:
    first = re.search(r"\(position (\d+)\) · preplan, pair", said(opened("rhythm", "rhythm")))
    assert first
    assert int(first[1]) % example.PHRASE == example.PROMPT % example.PHRASE
    app = opened("rhythm", "rhythm", trace="shop-1", token="36", tint="entropy", horizon="v1", sink="out")
    assert "`' .'` (position 36) · preplan, pair 1" in said(app)
    assert "here from 10 to 50 tokens ahead" in said(app)
    assert "position 37: ' Then', anchor; WAAD" in unescape(html_of(app))


def test_the_last_tokens_have_no_influence_to_show_and_the_page_says_so(opened: Callable[..., AppTest]) -> None:
    last = example.PROMPT + len(example.TOKENS) - 1
    assert "FAI **not defined**" in said(opened("rhythm", "rhythm", token=str(last), horizon="v2"))


def test_other_head_sets_give_other_curves_and_impossible_ones_a_sentence(opened: Callable[..., AppTest]) -> None:
    default = opened("rhythm", "rhythm", token="36")
    assert "**Local**: 6 heads" in said(default)
    local = said(default).partition("**Local**")[2].partition("**Global**")[0]
    assert set(re.findall(r"H(\d)", local)) == {"0", "2"}
    other = opened("rhythm", "rhythm", token="36", sink="out", share="0.5")
    assert "**Global**: 12 heads" in said(other)
    assert numbers_of(other) != numbers_of(default)
    few = opened("rhythm", "rhythm", layers="upper", share="0.05")
    assert "less than one head" in few.warning[0].value


def test_a_long_trace_is_shown_in_parts_and_a_link_opens_the_part_of_its_token(
    opened: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("views.one_trace.MOST", 25)
    app = opened("rhythm", "rhythm", token="80")
    assert "Tokens 51 to 60 of 60" in said(app)
    assert html_of(app).count("<a ") == 10
    next(button for button in app.button if button.label == "Earlier tokens").click().run()
    assert "Tokens 26 to 50 of 60" in said(app)


def test_a_run_that_lost_its_arrays_and_a_folder_without_such_a_run_get_a_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    with OpenRun.start(tmp_path, "sinks", {"made": "by hand"}) as run:
        run.note(model=example.MODEL)
    assert "type `headscope rhythm`" in said(shown_at(tmp_path))
    shutil.rmtree(run.run.path)
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*/arrays/0000.safetensors"):
        file.write_bytes(b"\x10\0\0")
    app = shown_at(tmp_path)
    [error] = app.error
    assert "missing or damaged" in error.value


def test_a_run_that_judged_little_says_what_it_lacks(
    runs: Path, tmp_path: Path, opened: Callable[..., AppTest]
) -> None:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    [run] = list_runs(tmp_path)[0]
    summary = run.summary() | {"accuracy": None, "sensitivity": None}
    summary["couplings"] |= {"lag": None}
    summary["perturbation"] |= {"matched": None}
    summary["sets"] |= {"halves": None, "receivers": []}
    (run.path / "summary.json").write_text(json.dumps(summary))
    tests: Any = next(frame.value for frame in shown_at(tmp_path).dataframe if "positions" in frame.value)
    assert len(tests) == 3
    (run.path / "summary.json").write_text(json.dumps(summary | {"perturbation": None}))
    app = shown_at(tmp_path)
    assert not app.error
    assert "no peak to judge" in app.dataframe[0].value["lift"].tolist()
    assert "--perturb" in said(app)
    assert "--sensitivity" in said(app)


def test_what_hangs_on_a_choice_stands_in_a_row_and_what_could_not_be_judged_says_why(
    opened: Callable[..., AppTest],
) -> None:
    tables: list[Any] = [frame.value for frame in opened("rhythm", "rhythm").dataframe]
    varied = next(table for table in tables if "varied" in table)
    assert varied["value"].tolist() == ["0.25", "yes", "1, 2"]
    assert varied["lift, lag"].tolist()[1:] == ["—", "—"]
    assert varied["lift, entropy"].iloc[0].startswith("+1")
    assert varied["lift, lag, gaps kept"].iloc[0] != varied["lift, lag"].iloc[0]
    assert varied["not judged because"].iloc[-1] == "Too few heads."


def test_what_survives_at_high_and_low_influence_stands_beside_the_papers(opened: Callable[..., AppTest]) -> None:
    tables: list[Any] = [frame.value for frame in opened("rhythm", "rhythm").dataframe]
    tests = next(table for table in tables if "positions" in table)
    assert tests["tokens"].tolist() == ["other tokens forced", "own token kept"] * 2 + ["other tokens forced"]
    assert tests["traces where high is lower"].iloc[0].startswith("0.75 [")
    assert tests["traces where high is lower"].iloc[1].endswith("4 ties")
    assert tests.iloc[-1][["high FAI", "low FAI"]].tolist() == ["0.534", "0.631"]


def test_marks_are_told_by_line_box_and_number_and_nothing_in_a_trace_becomes_markup() -> None:
    pieces = [
        Piece(" <b>", 0.5, 'a "title"', preplan=True, pairs="1"),
        Piece("\n", 1.0, "new line", anchor=True, pairs="1"),
        Piece("</a>", float("nan"), "no value"),
        Piece("", 0.5, "a piece of a character"),
    ]
    html = trace.trace_html(
        pieces, span=(0, 1), colour=(0, 0, 0), first=7, chosen=8, link=lambda position: f'?token={position}"'
    )
    assert "<b>" not in html
    assert html.count("<a ") == html.count("</a>") == 4
    assert "token=7&quot;" in html
    assert html.count("text-decoration:underline") == html.count("border:2px") == html.count("aria-current") == 1
    assert html.count("<sup") == 2
    assert "↵</span><sup" in html  # the number stands before the line ends
    assert "white-space:pre-wrap" in html
    assert html.count("background:") == 3
    assert "▫" in html


@pytest.mark.parametrize("scheme", PAGES)
@pytest.mark.parametrize("by", rhythm_charts.TINTS)
def test_the_strongest_tint_leaves_the_pages_ink_readable(scheme: str, by: str) -> None:
    page, ink = PAGES[scheme]
    tinted = [
        trace.STRONGEST * over + (1 - trace.STRONGEST) * under
        for over, under in zip(rhythm_charts.TINTS[by], page, strict=True)
    ]
    light, dark = sorted((luminance(tinted), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= READABLE


def test_tokens_and_curves_of_different_traces_are_refused() -> None:
    shown = ShownTrace(np.zeros(3), np.zeros(3), Marks((), (), ()))
    with pytest.raises(HeadscopeError, match="60 tokens and its arrays 3"):
        trace_tables.token_table(example.record(0), shown)


@pytest.mark.browser
def test_a_click_on_a_token_and_on_a_curve_chooses_it_and_the_page_is_no_wider_than_a_phone(
    runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    page = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    with dashboard(runs) as address:
        page.goto(f"{address}/rhythm")
        page.locator("a[title^='position 37:']").click()
        page.get_by_text("(position 37) · anchor, pair 1").wait_for()
        assert page.locator("a[title^='position'][aria-current=true]").get_attribute("title").startswith("position 37:")
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
        page.locator('path[aria-label*="position: 48"]').first.click(force=True)
        page.get_by_text("(position 48) · preplan").wait_for()
        assert "token=48" in page.url
    page.context.close()


def shown_at(folder: Path) -> AppTest:
    """The page with the newest run of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSCOPE_RUNS", str(folder))
        app = AppTest.from_file(str(APP), default_timeout=60)
        app.switch_page("views/rhythm.py")
        return app.run()


def numbers_of(app: AppTest) -> str:
    return next(element.value for element in app.markdown if "(position" in str(element.value))


def luminance(colour: Any) -> float:
    """Relative luminance of WCAG 2, in [0, 1]."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
