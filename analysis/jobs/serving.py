"""Being the worker of a jobs folder, and starting one that outlives whoever starts it."""

import os
import subprocess
import sys
from pathlib import Path

from analysis.jobs.folder import jobs
from analysis.jobs.job import WAITING
from analysis.jobs.lock import held, hold, jobs_folder
from analysis.runs import RUNS, writing

IDLE = 900.0  # seconds without work after which a worker ends


def serve(out: Path = RUNS, *, idle: float = IDLE) -> None:
    """Run jobs until there were none for `idle` seconds. Raises HeadscopeError where a worker is at work already."""
    folder = jobs_folder(out)
    while True:
        with hold(folder):
            from analysis.jobs.worker import work  # torch takes seconds, and a second worker should know at once

            work(out.absolute(), folder, idle=idle)
        # Whoever submitted a job just now saw the lock held, and started no worker.
        if held(folder) or not any(job.state in WAITING for job in jobs(out)[0]):
            return


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
