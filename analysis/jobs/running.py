"""One job at work: its command line run in this process, with state, progress and log kept in its folder."""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from analysis import cli
from analysis.jobs.cancelling import Watch
from analysis.jobs.job import Job, State, write_facts
from analysis.jobs.line import with_folder
from analysis.jobs.progress import ProgressFile
from analysis.jobs.slot import Slot
from analysis.runs import OPENED, Run, writing
from analysis.study import ADVANCED, LOADING, ModelChoice
from probes.errors import HeadscopeError
from probes.subject import Subject


class _Ending(NamedTuple):
    """How a job ended. sound: whether the model in memory may be used again."""

    state: State
    sentence: str | None
    sound: bool


class Running:
    """A job that this process has taken up."""

    def __init__(self, job: Job, out: Path, slot: Slot) -> None:
        self._job, self._out, self._slot = job, out, slot
        self._watch = Watch(job.path / "cancel")
        self._progress = ProgressFile(job.path / "progress.jsonl")
        self._facts = replace(job.facts, started=time.time(), pid=os.getpid(), attempts=job.facts.attempts + 1)

    def run(self) -> State:
        """Run it to its end, whatever that is; returns the state in which it ended."""
        self._note("running")
        ending = self._outcome()
        if not ending.sound:  # the frames of an error, and with them the model, are gone only now
            self._slot.drop()
        if ending.state == "interrupted":  # by Ctrl-C: it is not the job that ends its workers
            self._note("interrupted", pid=None, attempts=self._facts.attempts - 1)
        else:
            self._note(ending.state, pid=None, sentence=ending.sentence, ended=time.time())
        return ending.state

    def _outcome(self) -> _Ending:
        try:
            code = self._work()
        except KeyboardInterrupt:
            code = cli.INTERRUPTED
        except HeadscopeError as error:
            return _Ending("failed", self._explain(error), sound=True)
        except Exception as error:
            return _Ending("failed", self._explain(error), sound=False)
        if code == cli.INTERRUPTED:
            return _Ending("cancelled" if self._job.asked_to_stop else "interrupted", None, sound=False)
        if isinstance(code, int) and code:
            return _Ending("failed", f"It ended with exit code {code}: its log says why.", sound=True)
        return _Ending("done", None, sound=True)

    def _work(self) -> object:
        """Runs the command line; returns its exit code, or None."""
        spec = self._job.spec
        if not Path(spec.folder).is_dir():
            raise HeadscopeError(f"The folder {spec.folder}, from which the job was submitted, is gone.")
        resume = self._facts.run if self._facts.run and (self._out / self._facts.run).is_dir() else None
        arguments = with_folder(spec.arguments, self._out, resume)
        _forget_peak()
        with ExitStack() as around:
            log = around.enter_context((self._job.path / "log.txt").open("a", buffering=1))
            around.enter_context(redirect_stdout(log))
            around.enter_context(redirect_stderr(log))
            around.enter_context(chdir(spec.folder))
            around.enter_context(_typed(["headscope", *spec.arguments]))
            around.enter_context(_set(LOADING, self._load))
            around.enter_context(_set(ADVANCED, self._advance))
            around.enter_context(_set(OPENED, self._opened))
            around.enter_context(self._watch)
            return cli.app(args=arguments, prog_name="headscope", standalone_mode=False)

    def _explain(self, error: Exception) -> str:
        with (self._job.path / "log.txt").open("a") as log:
            traceback.print_exception(error, file=log)
        return cli.sentence_of(error) or f"This should not have happened ({type(error).__name__}): its log has details."

    def _load(self, choice: ModelChoice) -> Subject:
        self._note("loading")
        subject = self._slot.load(choice)
        self._note("running")
        return subject

    def _advance(self, title: str, done: int, total: int) -> None:
        with writing(self._job.path):
            self._progress.add(title, done, total)
        self._watch.check()

    def _opened(self, run: Run) -> None:
        self._note("running", run=run.id)

    def _note(self, state: State, **changes: Any) -> None:
        self._facts = replace(self._facts, state=state, **changes)
        write_facts(self._job.path, self._facts)


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def _typed(line: Sequence[str]) -> Iterator[None]:
    """While a job runs, its own line is the command line: a run's manifest says it."""
    before, sys.argv = sys.argv, list(line)
    try:
        yield
    finally:
        sys.argv = before


def _forget_peak() -> None:
    """The most memory that a run held is its own, not that of the job before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
