"""Being the worker of a jobs folder, and starting one that outlives whoever starts it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from analysis.jobs.folder import jobs
from analysis.jobs.job import WAITING, WORKING, write_facts
from analysis.jobs.lock import held, hold, jobs_folder
from analysis.jobs.memory import SLOT
from analysis.runs import RUNS, writing

IDLE = 900.0  # seconds without work after which a worker ends


def serve(out: Path = RUNS, *, idle: float = IDLE) -> None:
    """Run jobs until there were none for `idle` seconds. Raises HeadscopeError where a worker is at work already."""
    folder = jobs_folder(out)
    while True:
        with hold(folder):
            take_back(out)
            (folder / SLOT).unlink(missing_ok=True)  # what a killed worker said of its model
            from analysis.jobs.worker import work  # torch takes seconds, and a second worker should know at once

            work(out.absolute(), folder, idle=idle)
        # Whoever submitted a job just now saw the lock held, and started no worker.
        if held(folder) or not any(job.state in WAITING for job in jobs(out)[0]):
            return


def take_back(out: Path) -> None:
    """Jobs that a worker left when it died are interrupted: whoever holds the lock knows that none is at work."""
    for job in jobs(out)[0]:
        if job.facts.state in WORKING:
            write_facts(job.path, replace(job.facts, state="interrupted", pid=None))


def replace_dead_worker(out: Path = RUNS) -> bool:
    """Start a worker where one died in the middle of a job; returns whether one was started.

    After one that was stopped by hand none is started: whoever stopped it wants the machine for something else.
    """
    return any(job.facts.state in WORKING for job in jobs(out)[0]) and ensure_worker(out)


def ensure_worker(out: Path = RUNS, *, idle: float = IDLE) -> bool:
    """Start a worker that outlives this process, unless one lives; returns whether one was started.

    Of two that are started at the same time the later ends by itself. What it prints goes to worker.log.
    """
    folder = jobs_folder(out)
    if held(folder):
        return False
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / "worker.log").open("a")
    command = [sys.executable, "-m", "analysis.cli", "worker", "--out", str(out.absolute()), "--idle", str(idle)]
    with log:
        subprocess.Popen(
            command, cwd=Path(__file__).resolve().parents[2], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "HEADSCOPE_JOBS": str(folder.absolute())}, start_new_session=True,
        )  # fmt: skip
    return True
