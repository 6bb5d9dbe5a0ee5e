"""The Heads page on invented runs: filters, two metrics, two runs, the focus; then a browser.

pytest tests/views/test_heads_page.py
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from analysis.runs import write_json
from tests.views import example_runs as examples

SECOND = "20260101T030405Z-retrieval-dddddddd"
ROLES = "20260101T040506Z-heads-eeeeeeee"
CARRIED = {"L3H1": ["retrieval"], "L4H2": ["retrieval", "sink"], "L0H0": ["sink"]}


def _copy(folder: Path, name: str, **manifest: Any) -> Path:
    """Another run of the same model; its table of heads is that of the retrieval run."""
    path = folder / name
    shutil.copytree(folder / examples.RETRIEVAL, path)
    whole = json.loads((path / "manifest.json").read_text())
    write_json(path / "manifest.json", whole | {"id": name, **manifest})
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example runs, a second retrieval run whose L3H1 scores 0.3 lower, and a run of the heads' roles."""
    folder = tmp_path_factory.mktemp("runs")
    examples.write_example_runs(folder)
    second = _copy(folder, SECOND, request={"model": "synthetic", "seed": 1}) / "heads.parquet"
    frame = pd.read_parquet(second)
    moved = (frame["layer"] == 3) & (frame["head"] == 1) & (frame["metric"] == "retrieval_score")
    frame.loc[moved, ["value", "low", "high"]] -= 0.3
    frame.to_parquet(second, index=False)
    summary = {
        "role_names": ["sink", "retrieval"],
        "roles": {},
        "heads": [
            {"head": f"L{layer}H{head}", "confirmed": CARRIED.get(f"L{layer}H{head}", []), "roles": [], "evidence": {}}
            for layer in range(examples.LAYERS)
            for head in range(examples.HEADS)
        ],
    }
    write_json(_copy(folder, ROLES, command="heads") / "summary.json", summary)
    return folder


@pytest.fixture
def heads(opened: Callable[..., AppTest]) -> Callable[..., AppTest]:
    return lambda **address: opened("heads", "retrieval", **{"run": examples.RETRIEVAL, **address})


def address(app: AppTest, name: str) -> str:
    found = app.query_params.get(name, "")
    return found if isinstance(found, str) else found[0]


def shown(app: AppTest) -> pd.DataFrame:
    table = app.dataframe[0].value
    assert isinstance(table, pd.DataFrame)
    return table


def test_thresholds_names_and_roles_of_a_link_filter_the_table_together(heads: Callable[..., AppTest]) -> None:
    assert len(shown(heads())) == 24
    assert set(shown(heads(where="retrieval_score:0.05:"))["name"]) <= {"L3H1", "L4H2", "L1H0", "L5H3"}
    assert set(shown(heads(carries="retrieval"))["name"]) == {"L3H1", "L4H2"}
    assert set(shown(heads(find="L4,H1"))["name"]) >= {"L4H0", "L4H3", "L0H1"}
    together = heads(where="retrieval_score:0.05:,locos:0.01:", carries="retrieval", find="L3")
    assert list(shown(together)["name"]) == ["L3H1"]
    assert any("1 of 24 heads: L3; role retrieval by run" in text.value for text in together.markdown)


def test_a_threshold_that_is_typed_goes_into_the_link_and_leaves_it_when_cleared(heads: Callable[..., AppTest]) -> None:
    app = heads()
    app.multiselect(key="filter-metrics").set_value(["retrieval_score"]).run()
    app.number_input(key="limit-retrieval_score-low").set_value(0.25).run()
    assert address(app, "where") == "retrieval_score:0.25:"
    kept = shown(app)
    assert len(kept) < 24
    assert (kept["value"] >= 0.25).all()
    app.multiselect(key="filter-metrics").set_value([]).run()
    assert "where" not in app.query_params
    assert len(shown(app)) == 24


def test_a_filter_that_names_no_head_says_so_and_hides_nothing(heads: Callable[..., AppTest]) -> None:
    app = heads(find="L77")
    assert "L77 does not exist" in app.warning[0].value
    assert len(shown(app)) == 24
    assert "Loosen" in heads(where="retrieval_score:5:").info[0].value


def test_the_focus_moves_over_the_heads_that_are_kept_and_stays_in_the_link(heads: Callable[..., AppTest]) -> None:
    app = heads(head="L3H1")
    app.button(key="step-right").click().run()
    assert address(app, "head") == "L3H2"
    app.button(key="step-down").click().run()
    assert address(app, "head") == "L4H2"
    app = heads(head="L3H1", carries="retrieval")
    assert app.button(key="step-right").disabled
    app.button(key="step-down").click().run()
    assert address(app, "head") == "L4H2"


def test_a_link_to_a_head_that_the_run_lacks_focuses_the_strongest_and_says_so(heads: Callable[..., AppTest]) -> None:
    app = heads(head="L99H9")
    assert "'L99H9'" in app.warning[0].value
    assert address(app, "head") == shown(app)["name"].iloc[0]


def test_two_runs_are_shown_as_this_one_minus_the_other_with_intervals(heads: Callable[..., AppTest]) -> None:
    app = heads(view="difference")
    assert address(app, "with") == SECOND
    first = shown(app).iloc[0]
    assert first["name"] == "L3H1"
    assert first["value"] == pytest.approx(0.3)
    assert first["low"] < 0.3 < first["high"]
    said = "\n".join(caption.value for caption in app.caption)
    assert "The runs differ in seed (none; the other 1)" in said
    assert "in 1 of 24 heads" in said


def test_without_a_second_run_the_difference_says_what_it_needs(
    heads: Callable[..., AppTest], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = heads(view="difference")
    shutil.copytree(runs / examples.RETRIEVAL, tmp_path / examples.RETRIEVAL)
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    app.run()
    assert "second finished run" in app.info[0].value


def test_two_metrics_of_two_runs_stand_side_by_side_and_a_box_in_the_link_filters_them(
    heads: Callable[..., AppTest],
) -> None:
    app = heads(view="scatter", against="locos", **{"with": SECOND})
    assert len(shown(app)) == 24
    boxed = heads(view="scatter", against="locos", box="0.05,1,0,1", **{"with": SECOND})
    assert 0 < len(shown(boxed)) < 24
    assert (shown(boxed)["x"] >= 0.05).all()
    boxed.selectbox(key="pick-against").set_value("needle_mass").run()  # a box of other metrics means nothing
    assert "box" not in boxed.query_params
    assert len(shown(boxed)) == 24


def test_runs_that_began_in_the_same_second_are_told_apart_in_the_lists(heads: Callable[..., AppTest]) -> None:
    # The browser sends back what an option says: two that say the same would be one, and a click would change the run.
    app = heads(view="scatter")
    for key in ("pick-run", "pick-with"):
        options = app.selectbox(key=key).options
        assert len(set(options)) == len(options) >= 3
        assert sum(SECOND in option for option in options) == 1


def test_a_damaged_box_or_threshold_in_a_link_is_left_out(heads: Callable[..., AppTest]) -> None:
    app = heads(view="scatter", box="1,2,three", where="retrieval_score:low:,nonsense,gone:1:2")
    assert len(shown(app)) == 24
    assert "box" not in app.query_params
    assert "where" not in app.query_params


@pytest.fixture(scope="module")
def url(runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    with dashboard(runs) as found:
        yield found


@pytest.mark.browser
def test_keys_move_the_focus_a_box_filters_and_a_copied_link_restores_both(url: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 1400})
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.goto(f"{url}/heads?run={examples.RETRIEVAL}&view=scatter&against=locos&head=L3H1")
    point = tab.locator('path[aria-label*="L3H1"][aria-label*="across"]')
    point.hover()  # once the chart stands still
    at = point.bounding_box()
    tab.mouse.move(at["x"] - 30, at["y"] + 30)
    tab.mouse.down()
    tab.mouse.move(at["x"], at["y"] + 10, steps=4)
    tab.mouse.move(at["x"] + 6, at["y"] + 2, steps=4)
    tab.mouse.up()
    tab.wait_for_url(re.compile("box="))
    tab.keyboard.press("ArrowDown")
    tab.wait_for_url(re.compile("head=L4H1"))
    words = tab.get_by_text("heads: inside the box").inner_text()
    assert int(words.split()[0]) < 24
    stranger = context.new_page()
    stranger.goto(tab.url)
    assert stranger.get_by_text("heads: inside the box").inner_text(timeout=20_000) == words
    stranger.get_by_role("button", name="Open L4H1").wait_for()
    assert stranger.url == tab.url
    stranger.keyboard.press("o")
    stranger.get_by_role("heading", name="Head L4H1").wait_for()
    context.close()
