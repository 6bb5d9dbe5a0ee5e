"""Interventions from the command to the finished run: killed, shared, refused; a tiny random model keeps it short.

pytest tests/test_interventions_end_to_end.py
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from analysis import evaluation
from analysis.cli import main
from analysis.intervene import Point
from analysis.runs import Run, find_run

pytestmark = pytest.mark.model
ROOT = Path(__file__).resolve().parents[1]
NEEDLE = "needle(lengths=256, new_tokens=4)"
READ = "perplexity(tokens=64, stride=32)"
ASKED = ("--task", f"{NEEDLE}, {READ}", "--count", "6", "--controls", "1")
SWEEP = ("sweep", "weight(needle, {w}) @ L0H{h} in decode; scale({w}) @ L1H0", "--over", "w=0,3", "--over", "h=0:2",
         "--task", NEEDLE, "--count", "8")  # fmt: skip
RESULTS = ("cases.jsonl", "summary.json")


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder()


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of heads as the authors of the retrieval-head paper publish theirs: the last head is the strongest."""
    file = tmp_path_factory.mktemp("list") / "scores.json"
    file.write_text(json.dumps({f"{i // 4}-{i % 4}": [i / 10] for i in range(8)}))
    return file


def ended(arguments: Sequence[object]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def finished(*arguments: object, model: Path, out: Path) -> Run:
    assert ended([*arguments, "--model", model, "--out", out]) == 0
    return find_run("last", out)


@pytest.fixture(scope="module")
def swept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep of four points that was never stopped."""
    return finished(*SWEEP, model=model, out=tmp_path_factory.mktemp("swept"))


def test_a_run_keeps_what_was_asked_and_what_came_out_and_prints_only_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished("intervene", "output_zero @ L0", *ASKED, "--json", model=model, out=tmp_path)
    assert run.finished
    printed, summary = json.loads(capsys.readouterr().out), run.summary()
    assert printed == {"run": str(run.path), "state": "finished", "summary": summary}
    assert [case["case"] for case in run.cases()] == run.manifest["request"]["case_ids"]
    assert (summary["template"], summary["n_cases"]) == ("output_zero @ L0", 12)
    assert list(summary["tasks"]) == [NEEDLE, READ]
    assert {"L0H0", "L0H1", "L0H2", "L0H3"}.isdisjoint(summary["controls"]["treated/random/0"])
    [row] = summary["tasks"][READ]["points"]
    assert row["heads"] == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert row["treated_to_baseline"]["difference"]["value"] != 0
    assert row["treated_to_baseline"]["unchanged"] < 6
    assert row["control"] is not None


def test_streaming_ranked_by_a_published_list_draws_its_curve(model: Path, scores: Path, tmp_path: Path) -> None:
    run = finished(
        "stream", "--keep", "0,50", "--sink", "4", "--window", "28", "--heads-from", scores, "--metric", "listed",
        "--task", NEEDLE, "--count", "2", model=model, out=tmp_path,
    )  # fmt: skip
    curve = run.summary()["curve"]
    assert [row["full_groups"] for row in curve["rows"]] == [2, 0]
    assert [row["saved"] for row in curve["rows"]] == pytest.approx([0.5 * (1 - 32 / 256), 1 - 32 / 256])
    streams = {row["name"]: set(row["heads"]) for row in run.summary()["tasks"][NEEDLE]["points"]}
    assert streams["kept=50%"] == {"L0H0", "L0H1", "L0H2", "L0H3"}
    assert set(run.summary()["controls"]) == {"kept=50%/random/0"}


def test_a_sweep_is_refused_to_a_second_process_and_ends_with_the_same_bytes_after_the_first_was_killed(
    swept: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SWEEP, "--model", str(model), "--out", str(tmp_path)]
    work = subprocess.Popen(
        [sys.executable, "-m", "analysis.cli", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not any(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/cases.jsonl")):
            assert work.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        work.send_signal(signal.SIGSTOP)  # alive and holding the run, as a slow one would be
        [path] = tmp_path.iterdir()
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        assert 1 <= Run(path).case_count() < 8
        assert ended([*arguments, "--resume", "last"]) == 1
        assert "is being written by another process" in capsys.readouterr().err
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    finally:
        work.kill()
        work.wait(timeout=30)
    with (path / "cases.jsonl").open("a") as file:
        file.write('{"case": "half a li')  # as a kill in the middle of a write leaves it
    resumed = finished(*SWEEP, "--resume", "last", model=model, out=tmp_path)
    assert resumed.path == path
    for name in RESULTS:
        assert (resumed.path / name).read_bytes() == (swept.path / name).read_bytes(), name


@pytest.mark.soak
def test_two_workers_give_the_values_of_one(swept: Run, model: Path, tmp_path: Path) -> None:
    shared = finished(*SWEEP, "--workers", "2", model=model, out=tmp_path)
    assert shared.manifest["workers"] == 2
    for one, other in zip(swept.cases(), shared.cases(), strict=True):
        assert one["case"] == other["case"]
        assert one["conditions"] == other["conditions"]


Refused = Callable[..., str]


@pytest.fixture
def refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command line, expects one sentence and no run, and returns the sentence."""

    def run(*arguments: object) -> str:
        code = ended([*arguments, "--model", model, "--out", tmp_path / "runs"])
        said = capsys.readouterr().err
        assert code == 1, said
        assert said.startswith("headscope: ")
        assert said.count("\n") == 1
        assert "should not have happened" not in said
        assert not (tmp_path / "runs").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("query_zero @ L9H0", "L9H0 does not exist"),
        ("query_zero @ L0-7", "layers 0 to 1"),
        ("query_zero @ L0G5", "L0G5"),
        ("knock_out(picture) @ L0H0", "span: this prompt has no span 'picture'"),
        ("knock_out(400:410) @ L0H0", "span: the range 400:410 holds no token"),
        ("knock_out(needle) @ L0H0 on picture", "queries: this prompt has no span 'picture'"),
        ("weight(needle, -1) @ L0H0", "factor: -1 is negative"),
        ("output_zero @ L0H0; scale(2) @ L0", "contradict each other on L0H0"),
        ("scale({factor}) @ L0H0", "{factor} has no values"),
        ("scale(2)", "names no heads"),
        ("", "The intervention is empty"),
        ("@no-such-file", "can't be read"),
    ],
)
def test_an_intervention_that_can_not_be_is_refused_before_any_run(refused: Refused, what: str, says: str) -> None:
    assert says in refused("intervene", what, "--task", NEEDLE, "--count", "2")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("poetry", "There is no task 'poetry'"),
        ("needle(lengths=0)", "has no room"),
        ("needle(lengths=256, depths=2)", "depth 2.0 is outside 0"),
        ("needle(lengths=510, new_tokens=64)", "go beyond the 512 positions"),
        ("needle(lengths=256, role=neither)", "role"),
        ("needle(lengths=256", "brackets"),
        ("perplexity(tokens=64, stride=64)", "stride"),
        (READ, "phase: query_zero @ L0H0 in decode acts only in decoding"),
    ],
)
def test_a_task_that_can_not_be_asked_is_refused_before_any_run(refused: Refused, task: str, says: str) -> None:
    assert says in refused("intervene", "query_zero @ L0H0 in decode", "--task", task, "--count", "2")


def test_a_span_that_only_a_later_prompt_lacks_is_refused_before_any_run(refused: Refused) -> None:
    said = refused("intervene", "knock_out(300:310) @ L0H0", "--task", f"needle(lengths=400), {NEEDLE}", "--count", "2")
    assert "holds no token of this prompt" in said


def test_a_result_that_is_no_number_ends_the_run_at_once_and_is_not_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["intervene", "scale(1e38) @ all", "--task", READ, "--count", "2", "--controls", "0", "--json"]
    assert ended([*asked, "--model", model, "--out", tmp_path]) == 1
    assert re.search(r"^headscope: perplexity.* under treated is (nan|inf)", capsys.readouterr().err)
    [path] = tmp_path.iterdir()
    assert (Run(path).manifest["state"], Run(path).case_count()) == ("stopped", 0)


@pytest.mark.parametrize("over", ["w", "w=", "=1", "2w=1"])
def test_values_without_a_name_and_names_without_values_are_refused(refused: Refused, over: str) -> None:
    assert "is not NAME=VALUES" in refused("sweep", "scale({w}) @ L0H0", "--over", over)


def test_values_for_no_variable_are_refused(refused: Refused) -> None:
    assert "{x} does not stand in" in refused("sweep", "scale(2) @ L0H0", "--over", "x=1")


def test_heads_ranked_by_nothing_or_by_a_metric_there_is_not_are_refused(refused: Refused, scores: Path) -> None:
    asked: list[Any] = ["intervene", "query_zero @ top(beauty, 2)", "--task", NEEDLE]
    assert "no metric 'beauty'" in refused(*asked, "--heads-from", scores)
    assert "start with headscope retrieval" in refused(*asked)


def test_a_curve_without_its_needles_is_refused_before_any_run(refused: Refused, scores: Path) -> None:
    said = refused("stream", "--heads-from", scores, "--metric", "listed", "--task", READ)
    assert "the curve needs the task needle" in said


def test_a_run_that_ranked_no_heads_selects_none(
    swept: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["intervene", "query_zero @ top(retrieval_score, 2)", "--heads-from", swept.path, "--model", model]
    assert ended([*asked, "--out", tmp_path]) == 1
    assert "ranked no heads" in capsys.readouterr().err


def test_a_published_list_of_several_files_is_known_by_all_of_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sink_size": 4, "recent_size": 64}')
    asked = [Point("query_zero @ top(listed, 1)")]
    origins = []
    for values in ("1.0\t0.0\n0.5\t0.0\n", "0.0\t1.0\n0.5\t0.0\n"):
        (tmp_path / "full_attention_heads.tsv").write_text(values)
        ranked = evaluation.load_ranked(
            asked, tmp_path, heads_from=str(tmp_path), model=str(model), device="cpu", dtype=None
        )
        origins.append(ranked.origin)
    assert origins[0] != origins[1]
