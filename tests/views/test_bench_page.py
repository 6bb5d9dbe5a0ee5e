"""The Bench page: a form that a link restores, the line that it makes, and the result of a real run on a tiny model.

pytest tests/views/test_bench_page.py
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from analysis.cli import main
from analysis.runs import list_runs
from tests.views import example_runs as examples
from tests.views.page_words import said
from views import bench_texts
from views.address import OF_ONE_RUN
from views.bench_texts import answer_html

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<img src=x onerror=alert(1)> **bold** [link](http://example.com)"
TASKS = "facts(new_tokens=3), copying(length=8)"


def judged(folder: Path, model: Path, *arguments: str) -> None:
    line = [*arguments, "--task", TASKS, "--count", "4", "--model", str(model), "--device", "cpu", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headscope", *line])  # which the run remembers
        with pytest.raises(SystemExit) as ended:
            main([*line, "--json"])
    assert not ended.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """Invented runs of other commands, and an intervention and a sweep that a tiny model really went through."""
    folder = tmp_path_factory.mktemp("bench") / "runs"
    examples.write_example_runs(folder)
    judged(folder, tiny_folder(), "intervene", "output_zero @ L0H0, L1H1", "--controls", "2", "--seed", "1")
    judged(folder, tiny_folder(), "sweep", "scale({x}) @ L{l}", "--over", "x=0,2", "--over", "l=0,1", "--controls", "0")
    return folder


@pytest.fixture
def form(opened: Callable[..., AppTest]) -> Callable[..., AppTest]:
    return lambda **address: opened("bench", "retrieval", **{"run": examples.RETRIEVAL, **address})


@pytest.fixture
def result(opened: Callable[..., AppTest]) -> Callable[..., AppTest]:
    return lambda command="intervene", **address: opened("bench", command, **address)


def address(app: AppTest, name: str) -> str:
    found = app.query_params.get(name, "")
    return found if isinstance(found, str) else found[0]


def line(app: AppTest) -> str:
    return str(app.code[0].value)


def words(app: AppTest) -> str:
    """What the page says, as it is read."""
    return said(app).replace("\\", "")


def runs_now(app: AppTest) -> bool:
    return any(button.label == "Run" for button in app.button)


# The form


def test_a_link_restores_the_whole_form_and_the_line_says_all_of_it(form: Callable[..., AppTest]) -> None:
    app = form(
        change="L3H1 L4H2", do="move(0:1, needle, 0.25)", on="last", phase="decode", tasks="needle(lengths=256)",
        count="8", controls="1", seed="5",
    )  # fmt: skip
    assert line(app) == (
        "headscope intervene 'move(0:1, needle, 0.25) @ L3H1, L4H2 on last in decode' --task 'needle(lengths=256)' "
        "--model synthetic --count 8 --controls 1 --seed 5"
    )
    assert runs_now(app)
    assert app.text_area(key="bench-text").value == "move(0:1, needle, 0.25) @ L3H1, L4H2 on last in decode"
    assert "2 of 24 heads: L3H1, L4H2" in words(app)
    again = form(**{name: address(app, name) for name in app.query_params})
    assert line(again) == line(app)


def test_choosing_an_operation_and_its_settings_rewrites_the_text_the_line_and_the_link(
    form: Callable[..., AppTest],
) -> None:
    app = form(change="L3H1")
    assert "query_zero @ L3H1" in line(app)
    app.selectbox(key="bench-kind").set_value("weight").run()
    assert "weight(0:1, 2) @ L3H1" in line(app)
    app.number_input(key="bench-weight-factor").set_value(0.5).run()
    app.selectbox(key="bench-weight-span").set_value("question").run()
    app.selectbox(key="bench-on").set_value("generated").run()
    assert "weight(question, 0.5) @ L3H1 on generated" in line(app)
    assert address(app, "do") == "weight(question, 0.5)"
    app.selectbox(key="bench-kind").set_value("output_zero").run()
    assert "'output_zero @ L3H1'" in line(app)  # which acts whatever the query
    assert app.selectbox(key="bench-on").disabled


def test_the_text_may_be_edited_and_takes_the_fields_with_it(form: Callable[..., AppTest]) -> None:
    app = form(change="L3H1")
    app.text_area(key="bench-text").set_value("scale(0.5) @ L1, L2H3 in prefill; knock_out(needle) @ L4").run()
    assert app.text_input(key="bench-change").value == "L1, L2H3"
    assert app.selectbox(key="bench-kind").value == "scale"
    assert app.number_input(key="bench-scale-factor").value == 0.5
    assert address(app, "phase") == "prefill"
    assert "scale(0.5) @ L1, L2H3 in prefill; knock_out(needle) @ L4" in line(app)
    assert "9 of 24 heads" in words(app)


def test_a_text_that_can_not_be_read_stays_with_its_sentence_until_a_field_takes_its_place(
    form: Callable[..., AppTest],
) -> None:
    app = form(change="L3H1")
    app.text_area(key="bench-text").set_value("scale(much) @ L1").run()
    assert app.text_area(key="bench-text").value == "scale(much) @ L1"
    assert "factor: 'much' is no number" in words(app)
    assert not runs_now(app)
    app.selectbox(key="bench-kind").set_value("output_zero").run()
    assert not app.error
    assert app.text_area(key="bench-text").value == "output_zero @ L3H1"
    assert runs_now(app)


def test_heads_by_a_metric_are_named_before_anything_runs_and_the_line_says_which_run_ranked_them(
    form: Callable[..., AppTest],
) -> None:
    app = form()
    assert "Name heads first" in app.warning[0].value
    app.number_input(key="bench-size").set_value(2).run()
    next(button for button in app.button if button.label == "Take them").click().run()
    assert address(app, "change") == "top(retrieval_score, 2)"
    assert "2 of 24 heads" in words(app)
    assert "L3H1" in words(app)
    assert f"--heads-from {examples.RETRIEVAL}" in line(app)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"change": "L6H0"}, "this model has layers 0 to 5"),
        ({"change": "L3H1", "do": "knock_out(needle)", "tasks": "needle, facts"}, "facts has no span needle"),
        ({"change": "L3H1", "phase": "decode", "tasks": "copying"}, "copying reads one prefill"),
        ({"change": "L3H1", "tasks": "reading"}, "no task"),
        ({"change": "L3H1", "tasks": "needle(width=3)"}, "no setting"),
        ({"change": "top(cleverness, 3)"}, "no metric"),
        ({"change": "the best ones"}, "not the name of a head"),
    ],
)
def test_what_can_not_be_asked_is_said_in_the_place_of_the_button(
    form: Callable[..., AppTest], given: dict[str, str], sentence: str
) -> None:
    app = form(**given)
    assert sentence in words(app)
    assert not runs_now(app)
    assert not app.code


def test_a_damaged_link_shows_what_it_can_and_says_what_it_could_not(form: Callable[..., AppTest]) -> None:
    app = form(change="L3H1", do="wiggle(3)", count="many", seed="-4", controls="99999999999999999999")
    assert "shown is query_zero" in words(app)
    assert line(app) == "headscope intervene 'query_zero @ L3H1' --task needle --model synthetic"
    for extreme in ("temperature(0.0001)", "stream(4, 99999999999999999999)", "shift(0:1, -80)", "scale(1e300)"):
        assert f"'{extreme} @ L3H1'" in line(form(change="L3H1", do=extreme)).replace("1e+300", "1e300")


def test_tasks_may_all_be_taken_away_and_others_typed_with_their_settings(form: Callable[..., AppTest]) -> None:
    app = form(change="L3H1")
    app.multiselect(key="bench-tasks").set_value([]).run()
    assert "Choose at least one task" in words(app)
    app.multiselect(key="bench-tasks").set_value(["copying"]).run()
    assert "--task copying " in line(app)
    unmatched = form(change="L3H1", tasks="copying(length=8, facts")
    assert "do not match" in words(unmatched)


def test_heads_picked_anew_begin_a_new_intervention(form: Callable[..., AppTest]) -> None:
    app = form(change="L3H1", do="scale(3)", more="knock_out(needle) @ L4")
    assert "scale(3) @ L3H1; knock_out(needle) @ L4" in line(app)
    del app.query_params["more"]
    app.query_params["change"] = "L2H2"
    app.run()
    assert "'scale(3) @ L2H2'" in line(app)


def test_a_span_that_a_task_lacks_is_left_out_of_the_lists_with_the_reason(form: Callable[..., AppTest]) -> None:
    app = form(change="L3H1", do="knock_out(question)", tasks="needle, facts")
    assert "needle" not in app.selectbox(key="bench-knock_out-span").options
    assert "The span **needle**: facts has none." in words(app)
    assert "**redistribute**" in words(app)


def test_without_a_ranking_of_the_same_model_the_metrics_say_what_they_need(result: Callable[..., AppTest]) -> None:
    app = result(change="top(retrieval_score, 2)")
    assert "need a finished retrieval run of the same model" in words(app)
    assert not runs_now(app)


def test_choices_of_a_result_mean_nothing_in_another_run() -> None:
    assert {"task", "point", "case", "control", "from"} <= set(OF_ONE_RUN)


# The result


def summary_of(runs: Path, command: str) -> dict[str, Any]:
    return next(run for run in list_runs(runs)[0] if run.manifest["command"] == command).summary()


def test_a_result_says_what_moved_with_its_numbers_and_its_controls(result: Callable[..., AppTest], runs: Path) -> None:
    app = result()
    point = summary_of(runs, "intervene")["tasks"]["copying(length=8)"]["points"][0]
    table = app.dataframe[0].value
    assert isinstance(table, pd.DataFrame)
    assert list(table["point"]) == ["intervention"]
    assert table["baseline [95%]"][0].startswith(f"{point['baseline']['value']:.3g}")
    assert (table["better"][0], table["worse"][0]) == (
        point["treated_to_baseline"]["improved"], point["treated_to_baseline"]["worsened"],
    )  # fmt: skip
    told = "\n".join(text.value for text in app.text)
    assert "random/0: " in told
    assert "random/1: " in told
    assert not app.code
    assert "output_zero @ L0H0, L1H1" in line(result(repeat="true"))


def test_every_example_is_listed_and_a_link_opens_one_with_its_three_answers(
    result: Callable[..., AppTest], runs: Path
) -> None:
    run = next(run for run in list_runs(runs)[0] if run.manifest["command"] == "intervene")
    [*_, last] = [case for case in run.cases() if case["task"] == "facts(new_tokens=3)"]
    app = result(task="facts(new_tokens=3)", case=last["case"], control="treated/random/1")
    listed = app.dataframe[1].value
    assert len(listed) == 4
    assert list(listed["change"]) == sorted(listed["change"])
    assert any(text.value == f"Question: {last['facts']['question']}" for text in app.text)
    headings = [text.value for text in app.markdown if "accuracy" in text.value]
    assert [heading.split("**")[1] for heading in headings] == ["Baseline", "Intervention", "Random heads, set 1"]
    assert "✗ wrong" in headings[0]


def test_a_task_that_writes_nothing_says_so(result: Callable[..., AppTest]) -> None:
    app = result(task="copying(length=8)")
    assert "no text to compare" in words(app)
    assert len(app.dataframe[1].value) == 4


def test_a_sweep_shows_every_point_and_the_one_that_the_link_names(result: Callable[..., AppTest]) -> None:
    app = result("sweep", point="x=2, l=1")
    assert list(app.dataframe[0].value["point"]) == ["x=0, l=0", "x=0, l=1", "x=2, l=0", "x=2, l=1"]
    assert app.selectbox(key="pick-point").value == "x=2, l=1"
    assert not any("Random heads, set" in text.value for text in app.markdown)


def test_changing_a_result_fills_the_form_with_what_its_run_asked(
    result: Callable[..., AppTest], tiny_folder: Callable[..., Path]
) -> None:
    app = result()
    next(button for button in app.button if button.label == "Change it and ask again").click().run()
    assert line(app) == (
        f"headscope intervene 'output_zero @ L0H0, L1H1' --task '{TASKS}' --model {tiny_folder()} --count 4 "
        "--controls 2 --seed 1"
    )
    next(button for button in app.button if button.label == "Back to the result").click().run()
    assert app.dataframe
    swept = result("sweep", point="x=2, l=1")
    next(button for button in swept.button if button.label == "Change it and ask again").click().run()
    assert "scale(2) @ L1H0, L1H1, L1H2, L1H3" in line(swept)


def test_answers_are_shown_as_text_whatever_they_hold() -> None:
    shown = answer_html([(HOSTILE, True), ("\n", False)], bench_texts.NEW)
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    assert answer_html([], bench_texts.NEW).count("(nothing)") == 1


# The ways here


@pytest.mark.parametrize(("page", "command"), [("heads", "retrieval"), ("ablation", "ablation")])
def test_pictures_of_heads_have_buttons_that_change_them(
    opened: Callable[..., AppTest], page: str, command: str
) -> None:
    app = opened(page, command, **({"run": examples.RETRIEVAL, "find": "L3"} if page == "heads" else {}))
    assert any(button.label == "Change these 4 heads" for button in app.button)


# In a browser


@pytest.fixture(scope="module")
def url(runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    with dashboard(runs) as found:
        yield found


@pytest.mark.browser
def test_heads_picked_on_a_page_are_built_into_an_intervention_and_a_copied_link_restores_it(
    url: str, browser: Any
) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 1400})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(f"{url}/heads?run={examples.RETRIEVAL}&find=L3")
    tab.get_by_role("button", name="Change these 4 heads").click()
    tab.get_by_role("heading", name="Bench").wait_for()
    said = tab.get_by_text("headscope intervene 'query_zero @ ")
    said.wait_for()
    tab.get_by_role("spinbutton", name="Seed").fill("7")
    tab.keyboard.press("Enter")
    tab.get_by_text("--seed 7").wait_for()
    before = said.inner_text()
    stranger = context.new_page()
    stranger.goto(tab.url)
    stranger.get_by_text("--seed 7").wait_for(timeout=60_000)
    assert stranger.get_by_text("headscope intervene 'query_zero @ ").inner_text() == before
    context.close()


@pytest.mark.browser
def test_an_intervention_is_changed_run_and_its_comparison_read(
    url: str, browser: Any, runs: Path, at_work: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with at_work(runs):
        change_run_and_read(url, browser, runs)


def change_run_and_read(url: str, browser: Any, runs: Path) -> None:
    run = next(run for run in list_runs(runs)[0] if run.manifest["command"] == "intervene")
    context = browser.new_context(viewport={"width": 1440, "height": 1400})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.goto(f"{url}/bench?run={run.id}")
    tab.get_by_role("button", name="Change it and ask again").click()
    heads = tab.get_by_role("textbox", name="Heads", exact=True)
    heads.fill("L1H0 L1H2")
    heads.press("Enter")
    tab.get_by_text("output_zero @ L1H0, L1H2").last.wait_for()
    tab.get_by_role("button", name="Run", exact=True).click()
    tab.get_by_role("link", name=re.compile("Open Bench")).wait_for()
    tab.get_by_role("link", name=re.compile("Open Bench")).click()
    tab.get_by_role("heading", name="What moved, and what held").wait_for()
    tab.get_by_text("output_zero @ L1H0, L1H2").first.wait_for()
    tab.locator('path[aria-label*="task: facts"]').click()
    tab.wait_for_url(re.compile("task=facts"))
    tab.get_by_text("Question:").wait_for()
    done = next(run for run in list_runs(runs)[0] if run.manifest["command"] == "intervene")
    assert f"run={done.id}" in tab.url
    assert done.summary()["tasks"]["copying(length=8)"]["points"][0]["heads"] == ["L1H0", "L1H2"]
    assert not wrong
    context.close()
