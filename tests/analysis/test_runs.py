"""A run keeps what it finished, whatever stops it, and says in one sentence what is wrong with a folder."""

import errno
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis import runs
from analysis.runs import FORMAT, OpenRun, Run, find_run, list_runs, write_json
from probes.errors import HeadscopeError

ROOT = Path(__file__).resolve().parents[2]
REQUEST = {"model": "tiny", "seed": 0}
EARLY, LATE = "20260101T000000Z-retrieval-aaaaaaaa", "20260102T000000Z-ablation-bbbbbbbb"
HALF_WRITTEN, NEWER = '{"format": 1, "comm', json.dumps({"format": FORMAT + 1})


def start(folder: Path, resume: str | None = None, **changed: Any) -> OpenRun:
    return OpenRun.start(folder, "retrieval", {**REQUEST, **changed}, resume=resume)


def begun(folder: Path, *cases: str, **changed: Any) -> Run:
    """A run that ended after these cases without a word, as one that was killed."""
    with start(folder, **changed) as run:
        for case in cases:
            run.add_case({"case": case})
    return run.run


def saved(folder: Path, name: str, manifest: str | None = None, **facts: Any) -> Run:
    """A run folder with this manifest; by default that of a finished run."""
    (folder / name).mkdir(parents=True)
    whole = {
        "format": FORMAT,
        "command": name.split("-")[1],
        "state": "finished",
        "request_hash": name,
        "seconds": 1,
    } | facts
    (folder / name / "manifest.json").write_text(json.dumps(whole) if manifest is None else manifest)
    return Run(folder / name)


def case_ids(run: Run) -> list[str]:
    return [case["case"] for case in run.cases()]


def sentence(act: Callable[[], object]) -> str:
    with pytest.raises(HeadscopeError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    return said


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time a run sees; `clock.now` sets it."""
    held = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(time=lambda: held.now))
    return held


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine lets nobody mount a small disk: {made.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(run: OpenRun) -> list[str]:
    """Adds cases until the disk is full; those that were acknowledged."""
    kept: list[str] = []

    def add() -> None:
        for i in range(1000):
            run.add_case({"case": f"c{i}", "text": "x" * 3000})
            kept.append(f"c{i}")

    assert "is full" in sentence(add)
    return kept


def test_a_new_run_says_what_was_asked_by_which_command_and_with_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/headscope", "retrieval", "--grid", "quick"])
    manifest = begun(tmp_path).manifest
    assert manifest["format"] == 1
    assert manifest["state"] == "running"
    assert manifest["command"] == "retrieval"
    assert manifest["request"] == REQUEST
    assert manifest["argv"] == "headscope retrieval --grid quick"
    assert {"python", "torch", "transformers", "headscope"} <= manifest["versions"].keys()
    assert manifest["machine"]["cores"] >= 1
    assert manifest["seconds"] == 0


def test_the_recorded_command_can_be_pasted_into_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["headscope", "retrieval", "--haystack", "my own text.txt"]
    monkeypatch.setattr(sys, "argv", asked)
    assert shlex.split(begun(tmp_path).manifest["argv"]) == asked


def test_the_folder_is_named_by_time_command_and_request(tmp_path: Path) -> None:
    first, second, other = begun(tmp_path), begun(tmp_path), begun(tmp_path, seed=1)
    assert first.id != second.id
    assert first.id.split("-")[1:] == ["retrieval", first.manifest["request_hash"][:8]]
    assert other.manifest["request_hash"] != first.manifest["request_hash"] == second.manifest["request_hash"]


def test_cases_come_back_in_order_and_each_is_on_disk_before_the_next(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        for i, name in enumerate(["b", "a", "ü\n"]):
            run.add_case({"case": name, "i": i})
            assert [case["i"] for case in Run(run.run.path).cases()] == list(range(i + 1))
    assert case_ids(run.run) == ["b", "a", "ü\n"]


def test_a_half_written_last_line_is_dropped_on_resume_and_its_case_done_again(tmp_path: Path) -> None:
    run = begun(tmp_path, "a", "b")
    with (run.path / "cases.jsonl").open("a") as file:
        file.write('{"case": "c", "resp')
    assert case_ids(run) == ["a", "b"]
    with start(tmp_path, resume="last") as again:
        assert again.done == {"a", "b"}
        again.add_case({"case": "c"})
    assert case_ids(run) == ["a", "b", "c"]


def test_a_damaged_line_in_the_middle_is_reported_not_skipped(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    (run.path / "cases.jsonl").write_text('{"case": "a"}\n{"ca\n{"case": "c"}\n')
    assert "damaged" in sentence(run.cases)


def test_resuming_the_last_run_takes_one_with_the_same_request_only(tmp_path: Path) -> None:
    run, other = begun(tmp_path, "a"), begun(tmp_path, seed=1)
    with start(tmp_path, resume="last") as again:
        assert again.run == run
        assert again.done == {"a"}
    with start(tmp_path, resume="last", seed=2) as new:
        assert new.run not in (run, other)
        assert not new.done


def test_resuming_by_name_with_another_request_is_refused_and_names_what_differs(tmp_path: Path) -> None:
    run = begun(tmp_path)
    said = sentence(lambda: start(tmp_path, resume=run.id, seed=1, grid="full"))
    assert "grid, seed differs" in said
    assert run.manifest["argv"] in said
    assert "command differs" in sentence(lambda: OpenRun.start(tmp_path, "ablation", REQUEST, resume=run.id))
    assert [found.id for found in list_runs(tmp_path)[0]] == [run.id]


def test_a_run_in_use_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        assert "another process" in sentence(lambda: start(tmp_path, resume=run.run.id))
        run.add_case({"case": "a"})
    with start(tmp_path, resume=run.run.id) as again:
        assert again.done == {"a"}


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (HALF_WRITTEN, "half written"),
        ("", "half written"),
        (NEWER, f"format {FORMAT + 1}"),
        ("[1, 2]", "names no format"),
        ('{"state": "finished"}', "names no format"),
    ],
)
def test_a_manifest_that_can_not_be_read_is_one_sentence(tmp_path: Path, manifest: str, says: str) -> None:
    run = saved(tmp_path, EARLY, manifest)
    assert says in sentence(lambda: run.manifest)
    assert says in sentence(lambda: find_run(EARLY, tmp_path))


def test_a_manifest_is_read_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run" / "manifest.json"
    file.parent.mkdir()
    facts = {"format": FORMAT, "command": "x", "request_hash": "y", "state": "running", "seconds": 1}
    write_json(file, facts)
    assert Run(file.parent).manifest["seconds"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", None)
        manifest = Run(file.parent).manifest
    manifest["seconds"] = 99  # the reader's own
    for seconds in (2, 3, 4):  # whatever file the system gives an old one's number
        write_json(file, facts | {"seconds": seconds})
        assert Run(file.parent).manifest["seconds"] == seconds


def test_a_folder_without_manifest_is_no_run(tmp_path: Path) -> None:
    assert "no manifest.json" in sentence(lambda: Run(tmp_path).manifest)


def test_runs_are_listed_newest_first_with_a_sentence_for_each_bad_one(tmp_path: Path) -> None:
    early, late = saved(tmp_path, EARLY), saved(tmp_path, LATE)
    saved(tmp_path, "20260103T000000Z-retrieval-cccccccc", HALF_WRITTEN)
    saved(tmp_path, "20260104T000000Z-retrieval-dddddddd", NEWER)
    (tmp_path / "a folder of mine").mkdir()
    (tmp_path / "notes.txt").touch()
    found, problems = list_runs(tmp_path)
    assert found == [late, early]
    assert [next(word for word in ("half", "upgrade", "no run", "not a run") if word in said) for said in problems] == [
        "not a run", "upgrade", "half",
    ]  # fmt: skip
    assert list_runs(tmp_path / "absent") == ([], [])


def test_a_run_is_found_by_the_beginning_of_its_name(tmp_path: Path) -> None:
    early, late = saved(tmp_path, EARLY), saved(tmp_path, LATE)
    assert find_run("20260101", tmp_path) == early
    assert find_run(LATE, tmp_path) == late
    assert find_run(str(late.path), tmp_path / "elsewhere") == late
    assert "2 runs" in sentence(lambda: find_run("2026", tmp_path))
    assert "no run named 2027" in sentence(lambda: find_run("2027", tmp_path))


def test_a_whole_name_is_found_though_a_longer_one_begins_with_it(tmp_path: Path) -> None:
    run = saved(tmp_path, EARLY)
    saved(tmp_path, f"{EARLY}-2")  # what a second run in the same second is named
    assert find_run(EARLY, tmp_path) == run


def test_a_path_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    assert "no run" in sentence(lambda: find_run("/nowhere/at/all", tmp_path))


def test_the_last_run_is_the_newest_finished_one_of_its_command(tmp_path: Path) -> None:
    early, late = saved(tmp_path, EARLY), saved(tmp_path, LATE)
    saved(tmp_path, "20260103T000000Z-retrieval-cccccccc", state="stopped")
    assert find_run("last", tmp_path) == late
    assert find_run("last", tmp_path, command="retrieval") == early
    assert "no finished sinks run" in sentence(lambda: find_run("last", tmp_path, command="sinks"))


def test_a_full_disk_is_said_and_the_cases_before_it_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        with start(tmp_path) as run:
            run.add_case({"case": "a"})
            monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
            run.add_case({"case": "b"})

    assert "disk" in (said := sentence(work))
    assert "is full" in said
    monkeypatch.undo()
    assert case_ids(list_runs(tmp_path)[0][0])[0] == "a"
    with start(tmp_path, resume="last") as again:
        assert "a" in again.done


def test_a_disk_that_really_fills_up_loses_no_case_it_took_and_the_run_goes_on(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 100_000)
    with start(small_disk / "runs") as run:
        kept = fill(run)
    assert len(kept) > 10
    assert case_ids(run.run)[: len(kept)] == kept
    (small_disk / "ballast").unlink()
    with start(small_disk / "runs", resume="last") as again:
        assert again.run == run.run
        assert set(kept) <= again.done
        again.add_case({"case": "one more"})
        again.finish(heads=None, summary={"n_cases": len(again.done)})
    assert case_ids(run.run) == [*kept, "one more"]
    assert run.run.finished


def test_a_log_that_finds_no_room_either_does_not_hide_that_the_disk_is_full(small_disk: Path) -> None:
    def work() -> None:
        with start(small_disk / "runs") as run:
            log = run.run.path / "log.txt"
            run.log("x" * (4096 - log.stat().st_size - len("2026-01-01T00:00:00Z \n")))
            assert log.stat().st_size == 4096  # so that the next line needs another page
            for i in range(1000):
                run.add_case({"case": f"c{i}", "text": "x" * 3000})

    assert "is full" in sentence(work)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_can_not_be_written_to_asks_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_with(number))
    assert "choose another --out" in sentence(lambda: start(tmp_path / "runs"))


def test_a_file_in_place_of_the_runs_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert "choose another --out" in sentence(lambda: start(tmp_path / "runs"))


def test_a_json_file_that_can_not_be_written_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"n": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"n": float("nan")})
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_seconds_add_up_over_stop_and_resume(tmp_path: Path, clock: SimpleNamespace) -> None:
    def stop() -> None:
        with start(tmp_path, resume="last"):
            clock.now += 30
            raise HeadscopeError("enough")

    sentence(stop)
    clock.now += 10_000
    sentence(stop)
    clock.now += 10_000
    with start(tmp_path, resume="last") as run:
        clock.now += 5
        run.finish(heads=None, summary={})
    assert run.run.manifest["seconds"] == 65
    clock.now += 10_000
    with start(tmp_path, resume="last") as again:
        assert again.run.manifest["seconds"] == 65


def test_seconds_of_a_run_that_was_killed_are_counted_up_to_its_last_case(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    cases = begun(tmp_path, "a").path / "cases.jsonl"
    os.utime(cases, (1030, 1030))
    for clock.now in (2000.0, 3000.0):  # opened twice, and killed at once the first time
        with start(tmp_path, resume="last") as run:
            assert run.run.manifest["seconds"] == 30
    os.utime(cases, (3012, 3012))
    clock.now = 4000.0
    with start(tmp_path, resume="last") as run:
        clock.now += 1
        run.finish(heads=None, summary={})
    assert run.run.manifest["seconds"] == 43


def test_a_run_that_stops_says_why_in_its_log(tmp_path: Path) -> None:
    def stop(error: Exception) -> str:
        with pytest.raises(type(error)), start(tmp_path, resume="last") as run:
            raise error
        assert run.run.manifest["state"] == "stopped"
        return (run.run.path / "log.txt").read_text()

    assert "stopped: too long" in (log := stop(HeadscopeError("too long")))
    assert "Traceback" not in log
    assert "Traceback" in (log := stop(ZeroDivisionError("by zero")))
    assert "ZeroDivisionError: by zero" in log


def test_the_answers_of_an_unfinished_run_are_refused_with_how_to_finish_it(tmp_path: Path) -> None:
    run = begun(tmp_path, "a")
    assert f"--resume {run.id}" in sentence(run.summary)
    assert f"--resume {run.id}" in sentence(run.heads)


def test_a_finished_run_is_read_without_torch(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.add_case({"case": "a"})
        run.finish(heads=pd.DataFrame({"layer": [3], "value": [0.5]}), summary={"n_cases": 1}, peak_memory_bytes=7)
    code = """
import sys
from analysis.runs import find_run
run = find_run(sys.argv[1])
assert run.finished and run.manifest["peak_memory_bytes"] == 7
assert run.summary() == {"n_cases": 1} and len(run.cases()) == 1
assert run.heads().to_dict("records") == [{"layer": 3, "value": 0.5}]
assert "torch" not in sys.modules, "reading imported torch"
"""
    read = subprocess.run([sys.executable, "-c", code, run.run.path], cwd=ROOT, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr


def test_a_run_begun_with_another_version_of_the_code_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    first = begun(tmp_path)
    manifest = first.manifest
    write_json(first.path / "manifest.json", manifest | {"versions": manifest["versions"] | {"torch": "1.0"}})
    assert "other versions" in sentence(lambda: OpenRun.start(tmp_path, "retrieval", REQUEST, resume=first.id))
    with OpenRun.start(tmp_path, "retrieval", REQUEST, resume="last") as other:
        assert other.run.id != first.id
