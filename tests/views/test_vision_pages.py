"""The pages Vision and Hallucination, on runs whose evidence is invented."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.runs import OpenRun, list_runs
from tests.views import example_vision as example
from tests.views.page_words import said
from views import caption, picture

APP = Path(__file__).resolve().parents[2] / "app.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    example.write_vision(folder)
    example.write_hallucination(folder)
    return folder


@pytest.fixture
def opened(opened: Callable[..., AppTest]) -> Callable[..., AppTest]:
    """The same, and no page warns of anything."""

    def open_page(page: str, command: str, **address: str) -> AppTest:
        app = opened(page, command, **address)
        assert not app.warning, [warning.value for warning in app.warning]
        return app

    return open_page


def test_the_vision_page_begins_with_an_invented_word_and_says_what_it_shows(opened: Callable[..., AppTest]) -> None:
    app = opened("vision", "vision")
    assert "`' dog'` (step 8)" in said(app)
    assert "Named and not there: dog, umbrella. There and not named: kite." in said(app)
    assert "not corrected for many" in said(app)
    assert app.dataframe[0].value["n"].tolist() == [8]
    assert "[" in app.dataframe[0].value["CHAIR_i"].iloc[0]


def test_a_link_to_a_word_and_a_head_lays_that_heads_attention_over_the_picture(opened: Callable[..., AppTest]) -> None:
    app = opened("vision", "vision", word="5", looking="L2H1")
    assert "`' cat'` (step 5) is written, L2H1 gives **25%** of its attention" in said(app)
    alone = opened("vision", "vision", looking="no map, the picture alone")
    assert "The picture, and the boxes of what is in it." in said(alone)


def test_a_click_away_from_a_long_caption_forgets_a_word_that_this_one_lacks(opened: Callable[..., AppTest]) -> None:
    assert "(step 8)" in said(opened("vision", "vision", word="400"))


def test_the_heads_of_a_vision_run_can_be_seen_and_opened(opened: Callable[..., AppTest]) -> None:
    assert "vision-aware head divergence" in said(opened("heads", "vision", metric="divergence"))
    assert opened("head", "vision", head="L2H1").title[0].value == "Head L2H1"


def test_detectors_sinks_and_pointing_stand_beside_what_luck_would_give(opened: Callable[..., AppTest]) -> None:
    tables: list[Any] = [frame.value for frame in opened("vision", "vision").dataframe]
    columns = {name for table in tables for name in table.columns}
    assert {"by luck", "AUROC", "base rate: background's share of the picture", "n"} <= columns
    pointing = next(table for table in tables if "pointing" in table)
    assert pointing["map"].tolist()[0].startswith("L2H1")
    assert {"an even map", "a map of the centre"} < set(pointing["map"])
    through = pointing[pointing["map"].str.contains("through all layers")]
    assert through["n"].tolist() == [4, 4]  # of eight pictures four are explained


def test_a_run_without_maps_and_without_mentions_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., AppTest]
) -> None:
    run = example.write_vision(tmp_path, pictures=3, silent=True)
    monkeypatch.setattr("views.reading.runs_folder", lambda: tmp_path)
    app = opened("vision", "vision", run=run.id)
    assert "--shown 8" in said(app)
    assert "Not judged" in said(app)
    assert "nothing could be pointed at" in said(app)


def test_pages_without_a_run_of_theirs_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenRun.start(tmp_path, "sinks", {"made": "by hand"}) as run:
        run.note(model=example.MODEL)
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    for page, command in (("vision", "vision"), ("hallucination", "hallucinate")):
        app = AppTest.from_file(str(APP), default_timeout=60)
        app.switch_page(f"views/{page}.py")
        app.run()
        assert f"type `headscope {command}`" in said(app)


def test_the_hallucination_page_gives_every_arm_a_verdict_and_a_caption(opened: Callable[..., AppTest]) -> None:
    app = opened("hallucination", "hallucinate")
    captions: Any = app.dataframe[0].value
    assert captions["arm"].tolist() == ["none", "vhr", "vhr, random heads 1"]
    assert captions["beside none"].tolist() == ["—", "helps, another length", "no effect"]
    changes: Any = app.dataframe[1].value
    assert changes[["arm", "minus"]].to_numpy().tolist()[1] == ["vhr", "vhr, random heads 1"]
    assert "In the picture: **cat, kite**" in said(app)
    assert "invented: nothing · not named: kite · 7 tokens" in said(app)
    assert len(re.findall("umbrella", said(app))) >= 2
    papers: Any = next(frame.value for frame in app.dataframe if "source" in frame.value)
    assert papers["POPE F1"].astype(bool).sum() == 2  # the paper that has them, and no other


def test_an_invented_object_is_told_by_a_sign_and_nothing_in_a_caption_becomes_markup() -> None:
    html = caption.caption_html(example.TOKENS, example.CAPTION, example.MENTIONS)
    assert html.count("✗") == 2  # once for the two pieces of the umbrella
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    bars = caption.bars_html(
        example.TOKENS, example.CAPTION, example.MENTIONS, [0.0] * 15, chosen=5, link=lambda step: f'?word={step}"'
    )
    assert bars.count("outline:2px") == 1
    assert "word=5&quot;" in bars


def test_the_picture_keeps_its_shape_and_leaves_separators_out() -> None:
    patches = np.array([[0, 0, 0.5, 1], [np.nan] * 4, [0.5, 0, 1, 1]], np.float32)
    drawn = picture.picture_chart(np.zeros((50, 100, 3), np.uint8), patches, np.array([0.1, 0.5, 0.2]), example.OBJECTS)
    chart: Mapping[str, Any] = drawn.to_dict()
    assert (chart["width"], chart["height"] - picture.MARGIN) == (picture.SIDE, picture.SIDE / 2)
    heat = next(rows for rows in chart["datasets"].values() if "attention" in rows[0])
    assert [round(row["attention"], 6) for row in heat] == [0.1, 0.2]


@pytest.mark.browser
def test_a_click_on_a_word_and_on_a_square_shows_them_and_no_page_is_wider_than_a_phone(
    runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    ids = {run.manifest["command"]: run.id for run in list_runs(runs)[0]}
    page = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    with dashboard(runs) as address:
        for path, command in (("hallucination", "hallucinate"), ("vision", "vision")):
            page.goto(f"{address}/{path}?run={ids[command]}")
            page.locator("[data-testid=stVegaLiteChart] svg").first.wait_for()
            assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390, path
        page.locator("a[title^='step 5']").click()
        page.get_by_text("(step 5)").wait_for()
        page.locator('path[aria-label*="L2H1"]').first.click(force=True)
        page.get_by_text("L2H1 gives").wait_for()
        assert "word=5" in page.url
        assert "looking=L2H1" in page.url
    page.context.close()
