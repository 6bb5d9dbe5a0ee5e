"""The pages Sinks, Roles and Pairs, and what Heads and Head make of their runs.

A run of sinks is made on a tiny model; those of heads and pairs are summed up from invented evidence.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.cli import main
from analysis.runs import list_runs
from tests.views import example_sinks as examples
from tests.views.page_words import said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    asked = ["--count", "2", "--lengths", "64", "--out", str(folder), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["sinks", "--model", str(tiny_folder()), *asked])
    assert not ended.value.code
    examples.write_heads(folder)
    examples.write_pairs(folder)
    return folder


def test_the_sinks_page_says_what_was_judged_and_holds_every_layer_and_kind(opened: Callable[..., AppTest]) -> None:
    app = opened("sinks", "sinks")
    assert "judged on 2 natural prompts, without BOS" in said(app)
    assert "95% over prompts" in said(app)
    tables: list[Any] = [frame.value for frame in app.dataframe]
    assert any(len(table) == 2 and "layer" in table for table in tables)  # the tiny model's layers
    assert "No entry of the residual stream is massive." in said(app)


def test_the_roles_page_counts_roles_overlaps_and_what_is_left(opened: Callable[..., AppTest]) -> None:
    app = opened("roles", "heads")
    assert "12 of 12 heads" in said(app)
    assert "4 heads have no confirmed role" in said(app)
    assert f"{examples.CASES} with a needle ({examples.CASES} answered)" in said(app)
    assert "When the needle is not there" in said(app)


def test_a_link_to_a_role_shows_its_heads_alone(opened: Callable[..., AppTest]) -> None:
    app = opened("roles", "heads", role="retrieval")
    assert "1 of 12 heads: retrieval" in said(app)
    assert app.dataframe[0].value["name"].tolist() == ["L1H2"]
    assert any(button.label == "Change L1H2" for button in app.button)


def test_the_pairs_page_puts_the_models_side_by_side_and_holds_the_rules_in_the_link(
    opened: Callable[..., AppTest],
) -> None:
    app = opened("pairs", "pairs")
    assert "2 models · n = 5 windows of 512 tokens" in said(app)
    assert len(app.dataframe[0].value) == 2
    ends = app.dataframe[1].value
    assert sorted(set(ends["rule"])) == ["headwise gate", "softmax"]
    assert len(ends) == 6  # three seeds of each


@pytest.mark.parametrize(("command", "metric"), [("sinks", "sink_rate"), ("heads", "sink_rate")])
def test_every_head_of_these_runs_can_be_seen_on_the_grid_and_opened(
    command: str, metric: str, opened: Callable[..., AppTest]
) -> None:
    grid = opened("heads", command, metric=metric)
    assert "needle retrieval" not in said(grid)
    head = opened("head", command, head="L1H2")
    assert head.title[0].value == "Head L1H2"
    if command == "heads":
        assert "retrieval" in said(head)


def test_a_link_to_one_rule_draws_its_trainings_alone(opened: Callable[..., AppTest]) -> None:
    ends = opened("pairs", "pairs", rules="softmax").dataframe[1].value
    assert sorted(set(ends["rule"])) == ["softmax"]


def test_pages_survive_what_a_run_did_not_measure(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., AppTest]
) -> None:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    for run in list_runs(tmp_path)[0]:
        summary = run.summary() | {"needle_absent": None, "curves": []}
        if run.manifest["command"] == "heads":
            summary["roles"]["retrieval"] |= {"chosen": None, "confirmed": None, "confirmed_heads": []}
            for head in summary["heads"]:
                del head["evidence"]["retrieval_score"]
                head["confirmed"] = head["roles"] = [role for role in head["roles"] if role != "retrieval"]
        for model in summary.get("models", ()):
            model["loss"] |= {"low": None, "high": None}
        (run.path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr("views.reading.runs_folder", lambda: tmp_path)
    assert "When the needle is not there" not in said(opened("roles", "heads"))
    assert "not measured" in opened("roles", "heads").dataframe[1].value["chosen"].tolist()
    assert "not measured" in opened("head", "heads", head="L1H2").dataframe[1].value["verdict"].tolist()
    alone = opened("pairs", "pairs")
    assert "Over training" not in said(alone)
    assert "[" not in alone.dataframe[0].value["loss (nats per token)"].iloc[0]


def test_a_metric_is_forgotten_with_the_command_that_had_it_and_no_warning_is_left(
    runs: Path, opened: Callable[..., AppTest]
) -> None:
    ids = {run.manifest["command"]: run.id for run in list_runs(runs)[0]}
    app = opened("heads", "heads", metric="retrieval_score")
    app.sidebar.selectbox[0].set_value(ids["sinks"]).run()
    assert "Sink rate" in said(app)
    assert not app.warning


@pytest.mark.browser
def test_a_click_on_a_role_opens_its_head_and_no_page_is_wider_than_a_phone(
    runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    ids = {run.manifest["command"]: run.id for run in list_runs(runs)[0]}
    page = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    with dashboard(runs) as address:
        for path, command in (("sinks", "sinks"), ("pairs", "pairs"), ("head", "heads"), ("roles", "heads")):
            page.goto(f"{address}/{path}?run={ids[command]}")
            drawn = page.locator("[data-testid=stVegaLiteChart] svg, [data-testid=stDataFrame] canvas")
            drawn.locator("visible=true").first.wait_for()
            assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390, path
        page.locator('path[aria-label*="L1H2"]').first.click(force=True)
        page.get_by_role("heading", name="Head L1H2").wait_for()
    page.context.close()
