"""The pages Sinks, Roles and Pairs, and what Heads and Head make of their runs.

A run of sinks is made on a tiny model; those of heads and pairs are summed up from invented evidence.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis import pairs, roles
from analysis.cli import main
from analysis.retrieval import head_frame
from analysis.runs import OpenRun, list_runs

APP = Path(__file__).resolve().parents[2] / "app.py"
LAYERS, HEADS, CASES = 3, 4, 8
MODEL = {"name": "invented", "dtype": "float32", "device": "cpu", "layers": LAYERS, "heads": HEADS}


def evidence() -> dict[str, np.ndarray]:
    """Every head sinks but those of layer 0; L1H2 also retrieves."""
    draw = np.random.default_rng(0)
    found = {role.metric: draw.uniform(0, 0.05, (CASES, LAYERS, HEADS)) for role in roles.ROLES}
    found["write"] += 1.0
    found["sink_rate"][:, 1:] = 1.0
    found["retrieval_score"][:, 1, 2] = 0.9
    return found


def write_heads(folder: Path) -> None:
    found = evidence()
    present = found["sink_rate"][1::2] * 0.4
    absent = roles.needle_absent(present, present + 0.1, found["retrieval_score"].mean(0) > 0.1, seed=0)
    summary = {
        "n_cases": 3 * CASES, "counts": {"natural": CASES, "repeated": CASES, "needle": CASES, "answered": CASES},
        "confidence": 0.95, "correction": "intervals are over prompts", "n_heads": LAYERS * HEADS,
        "retrieval_from": None, **roles.summarise(found, seed=0), "needle_absent": absent,
    }  # fmt: skip
    with OpenRun.start(folder, "heads", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=0)
        run.finish(heads=head_frame(found, seed=0), summary=summary)


def write_pairs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    records = [
        {"case": f"pair-{rule.replace('_', '-')}", "rule": rule, "parameters": 1000, "tokens": 512,
         "each": {name: draw.uniform(1, 2, 5).tolist() for name in pairs.MEASURES}}
        for rule in ("softmax", "headwise_gate")
    ]  # fmt: skip
    with OpenRun.start(folder, "pairs", {"made": "by hand"}) as run:
        run.note(model=MODEL, total_cases=0)
        run.finish(heads=None, summary=pairs.summarise(records, seed=0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    asked = ["--count", "2", "--lengths", "64", "--out", str(folder), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["sinks", "--model", str(tiny_folder()), *asked])
    assert not ended.value.code
    write_heads(folder)
    write_pairs(folder)
    return folder


@pytest.fixture
def opened(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The app on a page, with the run of a command."""
    ids = {run.manifest["command"]: run.id for run in list_runs(runs)[0]}

    def open_page(page: str, command: str, **address: str) -> AppTest:
        monkeypatch.setenv("HEADSCOPE_RUNS", str(runs))
        app = AppTest.from_file(str(APP), default_timeout=60)
        for name, value in {"run": ids[command], **address}.items():
            app.query_params[name] = value
        app.switch_page(f"views/{page}.py")
        app.run()
        assert not app.exception, [error.value for error in app.exception]
        assert not app.error, [error.value for error in app.error]
        return app

    return open_page


def said(app: AppTest) -> str:
    parts = (app.title, app.caption, app.markdown, app.text, app.warning, app.info, app.subheader)
    return "\n".join(str(element.value) for part in parts for element in part)


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
    assert f"{CASES} with a needle ({CASES} answered)" in said(app)
    assert "When the needle is not there" in said(app)


def test_a_link_to_a_role_shows_its_heads_alone(opened: Callable[..., AppTest]) -> None:
    app = opened("roles", "heads", role="retrieval")
    assert "1 of 12 heads: retrieval" in said(app)
    assert app.dataframe[0].value["name"].tolist() == ["L1H2"]


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
