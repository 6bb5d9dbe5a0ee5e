"""The worker: in order, one model at a time, stopped within seconds, and nothing finished is lost."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis import cli, retrieval, study
from analysis.jobs import folder, running, serving, worker
from analysis.jobs.folder import cancel, submit
from analysis.jobs.job import Facts, Job, write_facts
from analysis.jobs.lock import held, hold, jobs_folder
from analysis.jobs.memory import ask_to_unload, in_memory
from analysis.jobs.serving import ensure_worker
from analysis.jobs.slot import Slot
from analysis.jobs.worker import ATTEMPTS
from analysis.runs import OpenRun, Run, find_run, list_runs
from analysis.study import ModelChoice

Line = Callable[..., list[str]]
Served = Callable[[], None]
CASES = 30  # cases enough for a kill in the middle


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dtypes of the models that were read."""
    read: list[str] = []
    before = study.load

    def counted(name: str, **asked: Any) -> Any:
        read.append(asked["dtype"] or "float32")
        return before(name, **asked)

    monkeypatch.setattr(study, "load", counted)
    return read


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def run_of(job: Job, out: Path) -> Run:
    assert job.facts.run is not None
    return find_run(job.facts.run, out)


def at_the_end(patch: pytest.MonkeyPatch, noted: Callable[[], None]) -> None:
    """Calls `noted` whenever a run has ended, with its job still at work."""
    finish = OpenRun.finish

    def noting(run: OpenRun, **facts: Any) -> None:
        finish(run, **facts)
        noted()

    patch.setattr(OpenRun, "finish", noting)


def test_jobs_run_in_order_and_share_one_model_as_long_as_it_is_the_same(
    out: Path, line: Line, served: Served, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [submit(line(1, *more), out) for more in ([], ["--dtype", "float32"], ["--dtype", "bfloat16"])]
    states: list[list[str]] = []
    memory: list[Any] = []
    at_the_end(monkeypatch, lambda: states.append([job.state for job in asked]))
    at_the_end(monkeypatch, lambda: memory.append(in_memory(jobs_folder(out))))
    served()
    assert states == [["running", "queued", "queued"], ["done", "running", "queued"], ["done", "done", "running"]]
    assert [job.state for job in asked] == ["done"] * 3
    assert loads == ["float32", "bfloat16"]
    assert memory[0] == memory[1]
    assert (memory[0].dtype, memory[2].dtype) == ("float32", "bfloat16")
    assert memory[0].bytes > memory[2].bytes > 0
    assert not (jobs_folder(out) / "slot.json").exists()


def test_the_run_of_a_job_is_that_of_its_line_typed_by_hand(out: Path, line: Line, served: Served) -> None:
    job = submit(line(2), out)
    served()
    run = run_of(job, out)
    assert run.finished
    assert run.manifest["argv"] == job.spec.command
    progress = job.progress()
    assert progress is not None
    assert progress.done == progress.total == len(run.cases()) > 1
    assert any("Needle accuracy" in words for words in job.last_words())


def test_a_model_is_read_again_when_its_files_changed_or_somebody_let_it_go(
    out: Path, line: Line, loads: list[str], tmp_path: Path
) -> None:
    copied = shutil.copytree(line(1)[2], tmp_path / "model")
    choice, slot = ModelChoice(str(copied), "cpu"), Slot(jobs_folder(out))
    with hold(jobs_folder(out)):
        assert slot.load(choice) is slot.load(choice)
        assert len(loads) == 1
        config = copied / "config.json"
        config.write_text(config.read_text() + "\n")
        slot.load(choice)
        assert len(loads) == 2
        slot.drop_if_asked()
        assert in_memory(jobs_folder(out)) is not None
        ask_to_unload(jobs_folder(out))
        slot.drop_if_asked()
        assert in_memory(jobs_folder(out)) is None
        assert not (jobs_folder(out) / "unload").exists()
        slot.load(choice)
        assert len(loads) == 3


def test_a_model_loaded_by_a_job_is_there_for_the_next_one(
    out: Path, line: Line, served: Served, loads: list[str]
) -> None:
    model = line(1)[2]
    first, second = submit(["load", model, "--device", "cpu"], out), submit(line(1), out)
    served()
    assert (first.state, second.state) == ("done", "done")
    assert loads == ["float32"]
    assert any("stays in memory" in words for words in first.last_words())
    assert first.facts.run is None


def test_a_worker_is_started_after_one_that_died_and_not_after_one_that_was_stopped(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(serving, "ensure_worker", lambda out: started.append(out) is None)
    job = submit(["models"], out)
    assert not serving.replace_dead_worker(out)
    write_facts(job.path, Facts(state="interrupted"))
    assert not serving.replace_dead_worker(out)
    write_facts(job.path, Facts(state="running"))
    assert serving.replace_dead_worker(out)
    assert started == [out]


def test_what_a_killed_worker_left_is_told_apart_before_the_next_one_can_work(
    out: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(["models"], out)
    write_facts(job.path, Facts(state="running", attempts=1))
    (jobs_folder(out) / "slot.json").write_text(
        '{"model": "gone", "device": "cpu", "dtype": "float32", "bytes": 1, "since": 0}'
    )
    seen: list[Any] = []
    monkeypatch.setattr(worker, "work", lambda *place, idle: seen.append((job.state, in_memory(jobs_folder(out)))))
    monkeypatch.setattr(serving, "jobs", lambda out: ([], []) if seen else folder.jobs(out))
    served()
    assert seen == [("interrupted", None)]


def test_a_refusal_is_the_jobs_sentence_and_the_next_job_runs(out: Path, line: Line, served: Served) -> None:
    lines = ["retrieval", "--model", "no-such"], line(1), ["models", "--json"]
    refused, broken, fine = (submit(each, out) for each in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "examine", None)
        served()
    assert (refused.state, broken.state, fine.state) == ("failed", "failed", "done")
    assert refused.facts.sentence is not None
    assert "There is no model 'no-such'" in refused.facts.sentence
    assert broken.facts.sentence is not None
    assert "TypeError" in broken.facts.sentence
    assert "Traceback" in (broken.path / "log.txt").read_text()
    assert json.loads("\n".join(fine.last_words(1000)))


def test_relative_paths_are_those_of_the_folder_where_the_job_was_asked(
    out: Path, line: Line, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked").mkdir()
    shutil.copy(tmp_path / "cat.jsonl", tmp_path / "asked" / "mine.jsonl")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "asked")
        job = submit(line(1, "--cases", "mine.jsonl"), out)
    before = Path.cwd()
    served()
    assert job.state == "done"
    assert len(run_of(job, out).cases()) == 1
    assert Path.cwd() == before


def test_a_long_case_is_cancelled_within_seconds_and_its_run_goes_on_later(
    out: Path, line: Line, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, after = submit(line(3), out), submit(["models"], out)
    examine, examined = retrieval.examine, []

    def slow(*arguments: Any, **options: Any) -> Any:
        examined.append(time.monotonic())
        if len(examined) == 3:
            threading.Timer(0.1, cancel, [job]).start()
            time.sleep(60)
        return examine(*arguments, **options)

    monkeypatch.setattr(retrieval, "examine", slow)
    served()
    assert time.monotonic() - examined[-1] < 5
    assert (job.state, after.state) == ("cancelled", "done")
    run = run_of(job, out)
    assert run.manifest["state"] == "stopped"
    assert len(run.cases()) == 2
    monkeypatch.setattr(retrieval, "examine", examine)
    again = submit(line(3, "--resume", run.id), out)
    served()
    assert again.facts.run == run.id
    assert run.finished
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_job_cancelled_between_two_cases_examines_no_other(
    out: Path, line: Line, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(line(3), out)
    add = OpenRun.add_case

    def cancelling(run: OpenRun, case: Any) -> None:
        add(run, case)
        cancel(job)

    monkeypatch.setattr(OpenRun, "add_case", cancelling)
    served()
    assert job.state == "cancelled"
    assert len(run_of(job, out).cases()) == 1


def test_a_job_cancelled_before_its_command_begins_ends_and_the_next_one_runs(
    out: Path, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, after = submit(["models"], out), submit(["doctor", "--json"], out)
    command = cli.app

    def early(*, args: list[str], **options: Any) -> Any:
        if args[0] == "models":
            cancel(job)
            time.sleep(60)
        return command(args=args, **options)

    monkeypatch.setattr(running.cli, "app", early)
    monkeypatch.setattr(running, "with_folder", lambda arguments, out, resume: list(arguments))
    served()
    assert job.state == "cancelled"
    assert after.state in ("done", "failed")  # as this machine is


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C interrupts, in a suite that runs in the background of a shell too, where Python begins by ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_leaves_the_job_for_the_next_worker_and_is_not_held_against_it(
    out: Path, line: Line, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(line(1), out)
    with monkeypatch.context() as patch:
        patch.setattr(OpenRun, "add_case", lambda run, case: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            served()
    assert (job.state, job.facts.attempts) == ("interrupted", 0)
    served()
    assert job.state == "done"


def test_a_job_that_kills_every_worker_is_given_up_and_one_cancelled_while_it_waited_ends(
    out: Path, served: Served
) -> None:
    deadly, tired = submit(["models"], out), submit(["models"], out)
    write_facts(deadly.path, Facts(state="running", attempts=ATTEMPTS))
    write_facts(tired.path, Facts(state="running", attempts=1))
    cancel(tired)
    served()
    assert (deadly.facts.state, tired.facts.state) == ("failed", "cancelled")
    assert deadly.facts.sentence is not None
    assert f"ended {ATTEMPTS} times" in deadly.facts.sentence


def test_a_killed_worker_loses_nothing_that_was_finished(out: Path, line: Line, served: Served) -> None:
    job = submit(line(CASES), out)
    assert ensure_worker(out)
    until(lambda: job.facts.run)
    cases = run_of(job, out).path / "cases.jsonl"
    until(lambda: cases.exists() and cases.read_bytes().count(b"\n") >= 2)
    assert not ensure_worker(out)
    pid = job.facts.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not held(jobs_folder(out)))
    finished = cases.read_bytes()
    assert job.state == "interrupted"
    served()
    assert (job.state, job.facts.attempts) == ("done", 2)
    (run,), _ = list_runs(out)
    assert cases.read_bytes().startswith(finished[: finished.rfind(b"\n") + 1])
    undisturbed = out.parent / "undisturbed"
    with pytest.raises(SystemExit):
        cli.main([*line(CASES), "--out", str(undisturbed)])
    (whole,), _ = list_runs(undisturbed)
    assert len(whole.cases()) > finished.count(b"\n")
    for name in ("cases.jsonl", "summary.json", "head_scores.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
