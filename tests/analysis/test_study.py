"""Working through cases: in order, none twice, and nothing finished is lost."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis import study
from analysis.needles import Case, Triple, grid, spread, triples
from analysis.runs import OpenRun, Run, list_runs
from analysis.study import GRIDS, ModelChoice, Worked, work_through
from probes.errors import HeadscopeError

TRIPLE = Triple("cat", "Where is the cat?", "The cat is on the mat.", "on the mat", "alice")
CASES = grid([TRIPLE], [100, 200], [0, 1], seed=0)
NO_MODEL: Any = SimpleNamespace(device=torch.device("cpu"))


class Examined(list[str]):
    """An examine that remembers what it was asked, and raises `error` at case number `stop`."""

    def __init__(self, stop: int | None = None, error: BaseException | None = None) -> None:
        self.stop, self.error = stop, error

    def __call__(self, subject: object, case: Case) -> dict[str, Any]:
        assert subject is NO_MODEL
        if self.error and len(self) == self.stop:
            raise self.error
        self.append(case.id)
        return {"case": case.id, "length": case.length}


def work(run: OpenRun, examine: Callable[..., dict[str, Any]], cases: list[Case] = CASES) -> Worked:
    return work_through(run, cases, NO_MODEL, ModelChoice("none"), examine, quiet=True)


def opened(folder: Path) -> OpenRun:
    return OpenRun.start(folder, "retrieval", {"seed": 0}, resume="last")


def only_run(folder: Path) -> Run:
    (run,), problems = list_runs(folder)
    assert not problems
    return run


def ids(records: list[dict[str, Any]]) -> list[str]:
    return [record["case"] for record in records]


IDS = [case.id for case in CASES]


def test_results_come_in_the_order_of_the_cases(tmp_path: Path) -> None:
    examine = Examined()
    with opened(tmp_path) as run:
        worked = work(run, examine, CASES[::-1])
    assert ids(worked.records) == IDS[::-1] == examine
    assert [record["length"] for record in worked.records] == [200, 200, 100, 100]


def test_results_of_a_resumed_run_come_in_the_order_of_the_cases_too(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.add_case({"case": IDS[2], "length": 200})
        assert ids(work(run, Examined()).records) == IDS


def test_cases_that_are_done_are_not_examined_again(tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError), opened(tmp_path) as run:
        work(run, Examined(2, HeadscopeError("enough")))
    rest = Examined()
    with opened(tmp_path) as run:
        assert ids(work(run, rest).records) == IDS
    assert rest == IDS[2:]
    with opened(tmp_path) as run:
        assert ids(work(run, Examined(0, AssertionError("all were done"))).records) == IDS


def test_a_run_that_stopped_and_went_on_ends_with_the_same_bytes(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as run:
        work(run, Examined())
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "parts") as run:
        work(run, Examined(3, KeyboardInterrupt()))
    with opened(tmp_path / "parts") as run:
        work(run, Examined())
    whole, parts = ((only_run(tmp_path / name).path / "cases.jsonl").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), HeadscopeError("no room"), KeyboardInterrupt()])
def test_an_error_in_one_case_keeps_those_before_it_and_marks_the_run_stopped(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)), opened(tmp_path) as run:
        work(run, Examined(3, error))
    assert ids(only_run(tmp_path).cases()) == IDS[:3]
    assert only_run(tmp_path).manifest["state"] == "stopped"


def test_the_largest_memory_of_any_case_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1, 5, 9, 7, 8])  # before the first case, and after each
    monkeypatch.setattr(study, "peak_bytes", lambda device: next(held))
    with opened(tmp_path) as run:
        assert work(run, Examined()).cost == {"peak_memory_bytes": 9, "workers": 1}


def test_the_memory_that_is_noted_is_that_of_this_process(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        peak = work(run, Examined()).cost["peak_memory_bytes"]
    assert 50e6 < peak < 1e12  # torch alone takes hundreds of megabytes; kilobytes taken for bytes would be less


def test_the_full_grid_is_the_twenty_lengths_and_ten_depths_of_the_paper() -> None:
    full = GRIDS["full"]
    assert (full.lengths, full.depths) == (20, 10)
    lengths = spread(full.shortest, full.longest, full.lengths)
    assert len(set(lengths)) == 20
    cases = grid(triples("detect"), lengths, [i / (full.depths - 1) for i in range(full.depths)], seed=0)
    assert len({case.id for case in cases}) == len(triples("detect")) * 200
