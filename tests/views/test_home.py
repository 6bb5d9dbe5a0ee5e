"""Home: the example of a first visit, what runs answer, and what can be asked next.

pytest tests/views/test_home.py
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from streamlit.testing.v1 import AppTest

from analysis.cli import app as command_line
from analysis.runs import Run, list_runs
from tests.views import example_runs as examples
from tests.views.page_words import said
from views import next_steps, reading, run_answers

ROOT = Path(__file__).resolve().parents[2]
LARGEST_EXAMPLE = 300_000  # bytes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    examples.write_example_runs(folder)
    return folder


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The bare address of a dashboard of a folder."""

    def open_home(folder: Path) -> AppTest:
        monkeypatch.setenv("HEADSCOPE_RUNS", str(folder))
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60).run()
        assert not app.exception, [error.value for error in app.exception]
        return app

    return open_home


def test_a_first_visit_sees_a_finished_run_that_says_it_is_an_example(
    home: Callable[..., AppTest], tmp_path: Path
) -> None:
    app = home(tmp_path)
    assert app.title[0].value == "headscope"
    assert "example · retrieval · smollm2-135m" in said(app)
    assert "fetch facts" in said(app)
    assert "headscope demo" in app.info[0].value
    lines = [code.value for code in app.code]
    assert "headscope retrieval --model smollm2-135m" in lines  # the example is no run of the visitor's
    assert not any(line.startswith("headscope ablate") for line in lines)


def test_the_example_gives_way_to_the_first_run_in_the_folder_and_to_a_broken_one(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(runs))
    assert not any(reading.is_example(run) for run in reading.runs()[0])
    (tmp_path / "half").mkdir()
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    found, problems = reading.runs()
    assert found == []
    assert len(problems) == 1


def test_the_example_is_whole_small_and_readable() -> None:
    (example,), problems = list_runs(reading.EXAMPLES)
    assert problems == []
    assert example.finished
    assert example.case_count() == example.manifest["total_cases"]
    assert len(example.heads()) == 5 * 30 * 9
    assert sum(file.stat().st_size for file in reading.EXAMPLES.rglob("*") if file.is_file()) < LARGEST_EXAMPLE


def test_runs_answer_in_one_line_with_intervals_and_n(home: Callable[..., AppTest], runs: Path) -> None:
    words = said(home(runs)).replace("\\", "")
    assert "first L3H1, L4H2, L1H0; needle accuracy 0.83 [0.63, 1.00], n = 12." in words
    assert "Accuracy 0.83 falls to 0.00 without the top 4 heads (query_zero, decode)" in words


def test_a_step_that_has_been_asked_or_lacks_something_says_so_and_the_others_can_be_copied(
    home: Callable[..., AppTest], runs: Path
) -> None:
    app = home(runs)
    lines = [code.value for code in app.code]
    assert "headscope sinks --model synthetic" in lines
    assert not any(line.startswith(("headscope retrieval", "headscope ablate")) for line in lines)
    assert ":gray[Which heads fetch facts from the context? It has been asked.]" in said(app)
    intervene = next(line for line in lines if line.startswith("headscope intervene"))
    assert f"--heads-from {examples.RETRIEVAL}" in intervene


def test_a_step_whose_package_is_missing_names_what_to_install(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setattr(next_steps, "find_spec", lambda name: None)
    step = next(step for step in next_steps.STEPS if step.package)
    found = list_runs(runs)[0]
    assert "harness" in next_steps.why_not(step, found, found)[0]


@pytest.mark.parametrize("step", next_steps.STEPS, ids=lambda step: step.run)
def test_every_step_is_a_line_that_the_command_line_parses(step: next_steps.Step) -> None:
    import shlex

    line = shlex.split(next_steps.command(step, "path/to my/model", []))
    command = typer.main.get_command(command_line)
    context = command.make_context("headscope", list(line[1:]), resilient_parsing=False)
    name, verb, rest = command.resolve_command(context, line[1:])  # type: ignore[attr-defined]
    assert name == line[1]
    verb.make_context(name, list(rest), parent=context)


def test_an_unfinished_run_says_how_far_it_is_and_how_to_go_on(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / examples.RETRIEVAL
    path.mkdir()
    for name in ("manifest.json", "cases.jsonl"):
        (path / name).write_text((runs / examples.RETRIEVAL / name).read_text().replace('"finished"', '"stopped"'))
    assert run_answers.answer(Run(path)) == f"Stopped at 12 of 12 cases. Go on with --resume {path.name}."


def test_a_summary_of_another_version_costs_its_line_and_not_the_page(
    home: Callable[..., AppTest], runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / examples.RETRIEVAL
    path.mkdir()
    (path / "manifest.json").write_text((runs / examples.RETRIEVAL / "manifest.json").read_text())
    (path / "summary.json").write_text('{"n_cases": 12}')
    assert "of another version" in said(home(tmp_path))


def test_markup_in_a_models_name_is_shown_and_not_drawn(
    home: Callable[..., AppTest], runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / examples.RETRIEVAL
    path.mkdir()
    for name in ("manifest.json", "summary.json"):
        hostile = "![x](http://example.org/x.png) <b>"
        (path / name).write_text((runs / examples.RETRIEVAL / name).read_text().replace('"synthetic"', f'"{hostile}"'))
    title = next(text.value for text in home(tmp_path).markdown if "retrieval ·" in text.value)
    assert "!\\[x\\]" in title
    assert "http\\:" in title
    assert "\\<b\\>" in title
