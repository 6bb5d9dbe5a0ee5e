"""Working through the cases of a run: order, progress with time left, workers, resume.

Results are written in the order of the cases whatever the number of workers, so a run that was killed and resumed ends
with the same bytes as one that was not.
"""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from analysis.display import Handling, console
from analysis.needles import Case
from analysis.runs import OpenRun
from probes.memory import check_fits, peak_bytes
from probes.subject import Subject, load


class Unit(Protocol):
    """One piece of a run's work. Its id names its line among the results."""

    @property
    def id(self) -> str: ...


Examine = Callable[[Subject, Any], dict[str, Any]]


@dataclass(frozen=True)
class ModelChoice:
    """How a subject is loaded, so that a worker process can load it again."""

    model: str
    device: str | None = None
    dtype: str | None = None

    def load(self) -> Subject:
        """The subject, from whoever keeps it in memory in this process (LOADING), or read anew."""
        loading = LOADING.get()
        return loading(self) if loading else self.read()

    def read(self) -> Subject:
        return load(self.model, device=self.device, dtype=self.dtype)


# How this process loads its models, and who is told after each case (title, done, total): both set by a worker of jobs.
LOADING: ContextVar[Callable[[ModelChoice], Subject] | None] = ContextVar("LOADING", default=None)
ADVANCED: ContextVar[Callable[[str, int, int], None]] = ContextVar("ADVANCED", default=lambda title, done, total: None)


@dataclass(frozen=True)
class Grid:
    """A named size of case grid. `full` is the 3 x 20 x 10 of Wu et al."""

    lengths: int
    depths: int
    shortest: int
    longest: int
    new_tokens: int


GRIDS = {
    "quick": Grid(lengths=2, depths=4, shortest=512, longest=1024, new_tokens=32),
    "standard": Grid(lengths=4, depths=6, shortest=512, longest=2048, new_tokens=32),
    "full": Grid(lengths=20, depths=10, shortest=512, longest=7500, new_tokens=50),
}


@dataclass(frozen=True)
class Worked:
    """Every result in the order of the cases, and what the work took: the memory of its largest process."""

    records: list[dict[str, Any]]
    cost: dict[str, int]


def workers_bytes(subject: Subject, each: int, workers: int) -> int:
    """What the cases take beside the weights in memory; each of several workers loads the model again."""
    if workers > 1:
        each += sum(weight.numel() * weight.element_size() for weight in subject.model.parameters())
    return each * workers


def prompts_fit(subject: Subject, count: int, longest: int, each: int, handling: Handling) -> bool:
    """Refuse prompts that would not fit; for a dry run say what they would take, and stop. each: bytes of a prompt."""
    needed = workers_bytes(subject, each, handling.workers)
    check_fits(needed, subject.device, f"{count} prompts of up to {longest} tokens")
    if handling.dry_run and handling.as_json:
        print(json.dumps({"cases": count, "longest": longest, "bytes_beside_the_weights": needed}))
    elif handling.dry_run:
        console.print(
            f"{count} prompts of up to {longest} tokens on {subject.name} ({subject.dtype}, {subject.device}); "
            f"about {needed / 1e9:.1f} GB beside the weights. Nothing was run."
        )
    return not handling.dry_run


def case_record(subject: Subject, case: Case, tokens: int, needle: Sequence[int]) -> dict[str, Any]:
    """What every result line says of its case."""
    triple = case.triple
    return {
        "case": case.id,
        "triple": triple.key,
        "haystack": triple.haystack,
        "length": case.length,
        "depth": round(case.depth, 6),
        "tokens": tokens,
        "question": triple.question,
        "answer": triple.answer,
        "needle": [min(needle), max(needle) + 1],
        "depth_reached": round(min(needle) / tokens, 3),
    }


def work_through(
    run: OpenRun,
    cases: Sequence[Unit],
    subject: Subject,
    choice: ModelChoice,
    examine: Examine,
    *,
    workers: int = 1,
    title: str = "cases",
    quiet: bool = False,
) -> Worked:
    """Examine the cases not yet done, keep each result as it comes, and return all results in order."""
    left = [case for case in cases if case.id not in run.done]
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        done = len(cases) - len(left)
        task = progress.add_task(title, total=len(cases), completed=done)
        peak = peak_bytes(subject.device)
        ADVANCED.get()(title, done, len(cases))
        for record, held in _results(left, subject, choice, examine, workers):
            run.add_case(record)
            progress.advance(task)
            done += 1
            ADVANCED.get()(title, done, len(cases))
            peak = max(peak, held)
    by_id = {record["case"]: record for record in run.run.cases()}
    return Worked([by_id[case.id] for case in cases], {"peak_memory_bytes": peak, "workers": workers})


def _results(
    cases: Sequence[Unit], subject: Subject, choice: ModelChoice, examine: Examine, workers: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Each result with the most memory that its process has held."""
    if workers <= 1:
        for case in cases:
            yield examine(subject, case), peak_bytes(subject.device)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(asdict(choice), examine)
    )
    with pool:
        yield from pool.map(_examine_in_worker, cases)


_WORKER: dict[str, Any] = {}


def _start_worker(choice: dict[str, Any], examine: Examine) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the work
    torch.set_num_threads(1)
    _WORKER.update(subject=ModelChoice(**choice).load(), examine=examine)


def _examine_in_worker(case: Unit) -> tuple[dict[str, Any], int]:
    return _WORKER["examine"](_WORKER["subject"], case), peak_bytes(_WORKER["subject"].device)
