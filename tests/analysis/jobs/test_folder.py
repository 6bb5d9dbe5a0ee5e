"""Jobs as everybody but the worker sees them: refused before anything is written, listed, cancelled."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.jobs import lock
from analysis.jobs.folder import cancel, find_job, jobs, submit
from analysis.jobs.job import Facts, Job, write_facts
from analysis.jobs.line import with_folder
from analysis.jobs.lock import held, hold, jobs_folder
from analysis.jobs.progress import ProgressFile, read_progress
from analysis.jobs.showing import duration, row
from probes.errors import HeadscopeError

GOOD = ["retrieval", "--grid", "quick"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no verb ''"),
        (["fly"], "no verb 'fly'"),
        (["ui"], "ui can't be a job"),
        (["worker"], "worker can't be a job"),
        (["jobs", "cancel", "x"], "jobs can't be a job"),
        (["submit", "models"], "submit can't be a job"),
        (["retrieval", "--grod", "quick"], "No such option: --grod"),
        (["retrieval", "--seed", "many"], "Invalid value for '--seed'"),
        (["retrieval", "--workers", "0"], "Invalid value for '--workers'"),
        (["intervene"], "Missing argument"),
        (["retrieval", "--help"], "does no work"),
        (["retrieval", "--out", "elsewhere"], "leave --out away"),
    ],
)
def test_a_line_that_cannot_be_run_is_refused_before_anything_is_written(
    out: Path, arguments: list[str], sentence: str
) -> None:
    with pytest.raises(HeadscopeError, match=sentence) as refused:
        submit(arguments, out)
    assert "\n" not in str(refused.value)
    assert not jobs_folder(out).exists()


def test_jobs_stand_beside_the_runs_in_the_order_in_which_they_were_asked(out: Path) -> None:
    asked = [submit([*GOOD, "--seed", str(seed)], out) for seed in range(5)]
    assert asked[0].path.parent == out.parent / "jobs"
    assert [job.spec.arguments[-1] for job in jobs(out)[0]] == ["0", "1", "2", "3", "4"]
    assert asked[0].state == "queued"
    assert asked[0].spec.command == "headscope retrieval --grid quick --seed 0"


def test_the_environment_says_where_jobs_stand(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSCOPE_JOBS", str(out.parent / "queue"))
    assert submit(GOOD, out).path.parent == out.parent / "queue"


def test_what_the_worker_adds_leaves_the_lines_own_options_and_texts_alone() -> None:
    out = Path("runs")
    assert with_folder(["models", "--json"], out, "r") == ["models", "--json"]
    assert with_folder(GOOD, out, None) == ["retrieval", "--out", "runs", "--grid", "quick"]
    text = ["intervene", "--seed", "1", "--", "--resume"]
    assert with_folder(text, out, "r") == ["intervene", "--out", "runs", "--resume", "r", *text[1:]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spec.json", "{"),
        ("spec.json", "[]"),
        ("spec.json", '{"format": 1, "arguments": "rm", "folder": "."}'),
        ("spec.json", '{"format": 1, "arguments": ["models", 3], "folder": "."}'),
        ("spec.json", '{"format": 9}'),
        ("state.json", '{"format": 1, "state": "flying"}'),
        ("state.json", '{"format": 1, "colour": "red"}'),
        ("state.json", None),
    ],
)
def test_a_damaged_job_is_one_sentence_and_the_others_are_listed(out: Path, name: str, text: str | None) -> None:
    damaged, sound = submit(GOOD, out), submit(GOOD, out)
    (damaged.path / name).unlink()
    if text is not None:
        (damaged.path / name).write_text(text)
    found, (problem,) = jobs(out)
    assert found == [sound]
    assert damaged.id in problem
    assert problem.count(". ") == 0


def test_a_job_is_found_by_the_beginning_of_its_id_and_never_outside_the_folder(out: Path) -> None:
    job = submit(GOOD, out)
    assert find_job(job.id[:20], out) == job
    for name in ("", "..", f"../jobs/{job.id}", str(job.path), "other"):
        with pytest.raises(HeadscopeError, match="no job named"):
            find_job(name, out)


def test_a_job_that_waits_is_cancelled_at_once_and_an_ended_one_not_at_all(out: Path) -> None:
    job = submit(GOOD, out)
    cancel(job)
    assert job.state == "cancelled"
    with pytest.raises(HeadscopeError, match="it is cancelled"):
        cancel(job)


def test_a_job_whose_worker_is_gone_is_interrupted_and_not_running(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    job = submit(GOOD, out)
    write_facts(job.path, Facts(state="running", pid=1))
    with hold(job.path.parent):
        assert held(job.path.parent)
        assert job.state == "running"
        with pytest.raises(HeadscopeError, match="at work already"), hold(job.path.parent):
            pass
    assert job.state == "interrupted"


def test_the_time_left_follows_the_pace_of_this_attempt_alone(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    steps: list[Any] = [("old", 0, 9, 0), ("old", 8, 9, 1000), ("cases", 8, 20, 2000), ("cases", 10, 20, 2010)]
    lines = [json.dumps(dict(zip(("title", "done", "total", "time"), step, strict=True))) for step in steps]
    file.write_text("\n".join(lines) + '\n{"title": "ca')
    progress = read_progress(file, since=1500)
    assert progress is not None
    assert (progress.title, progress.done, progress.total) == ("cases", 10, 20)
    assert progress.seconds_left == pytest.approx(50)
    assert read_progress(file, since=3000) is None
    assert read_progress(tmp_path / "none") is None


def test_ten_thousand_steps_leave_a_file_that_can_be_read_every_second(tmp_path: Path) -> None:
    steps, file = ProgressFile(tmp_path / "p"), tmp_path / "p"
    for done in range(10_001):
        steps.add("cases", done, 10_000)
    assert len(file.read_text().splitlines()) < 100
    last = read_progress(file)
    assert last is not None
    assert last.done == 10_000


def test_a_job_in_words(out: Path) -> None:
    job = submit(GOOD, out)
    ProgressFile(job.path / "progress.jsonl").add("scoring heads", 3, 8)
    assert row(job)[1:] == ("queued", "headscope retrieval --grid quick", "scoring heads: 3 of 8")
    assert [duration(seconds) for seconds in (40, 170, 7500)] == ["40 s", "3 min", "2 h 5 min"]


def test_what_is_half_written_is_no_job(out: Path) -> None:
    job = submit(GOOD, out)
    (job.path.parent / ".20260101T000000000000Z-retrieval.7").mkdir()
    (job.path.parent / "slot.json").write_text("{}")
    assert jobs(out) == ([Job(job.path)], [])
    assert job.facts.created <= time.time()
