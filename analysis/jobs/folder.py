"""The folder of the jobs, as everybody but the worker sees it: submit, list, cancel. Needs no model and no torch.

job = submit(["retrieval", "--grid", "quick"], Path("runs"))
job.state, job.progress(), job.facts.run
"""

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from analysis.jobs.job import FORMAT, LIVE, Facts, Job, write_facts
from analysis.jobs.line import parse
from analysis.jobs.lock import jobs_folder
from analysis.runs import RUNS, write_json, writing
from probes.errors import HeadscopeError


def submit(arguments: Sequence[str], out: Path = RUNS, *, asked_in: str | None = None) -> Job:
    """Queue a command line, without the word headscope; the worker gives it --out.

    asked_in: the folder from which its relative paths are read; by default this process's working directory.
    Raises HeadscopeError, before anything is written, for a line that can't be run.
    """
    line = parse(arguments)
    if line.out is not None and line.out.absolute() != out.absolute():
        raise HeadscopeError(f"A job's run goes into the folder of its worker, {out}: leave --out away.")
    folder = jobs_folder(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            now = datetime.now(UTC)
            job = Job(folder / f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{line.verb}")
            scratch = folder / f".{job.id}.{os.getpid()}"
            scratch.mkdir()
            spec = {"format": FORMAT, "arguments": list(arguments), "folder": asked_in or os.getcwd()}
            write_json(scratch / "spec.json", spec)
            write_facts(scratch, Facts(created=now.timestamp()))
            try:
                scratch.rename(job.path)  # only now it is there, whole
            except OSError:
                shutil.rmtree(scratch)
                if not job.path.exists():
                    raise
            else:
                return job


def jobs(out: Path = RUNS) -> tuple[list[Job], list[str]]:
    """Jobs, oldest first, and one sentence for each folder that can't be read."""
    found, problems = [], []
    folder = jobs_folder(out)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.name.startswith("."):
            continue
        job = Job(path)
        try:
            _ = job.spec, job.facts
        except HeadscopeError as error:
            problems.append(str(error))
        else:
            found.append(job)
    return found, problems


def find_job(name: str, out: Path = RUNS) -> Job:
    """A job by its id or the unique beginning of one; never a path outside the folder."""
    folder = jobs_folder(out)
    inside = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    matches = [path for path in inside if path.name == name] or [
        path for path in inside if name and path.name.startswith(name) and not path.name.startswith(".")
    ]
    if len(matches) != 1:
        what = "no job" if not matches else f"{len(matches)} jobs"
        raise HeadscopeError(f"There is {what} named {name} in {folder}: headscope jobs lists them.")
    return Job(matches[0])


def cancel(job: Job) -> None:
    """Ask for a job to be stopped; what its run has finished stays. Raises HeadscopeError where it has ended."""
    if job.state not in LIVE:
        raise HeadscopeError(f"The job {job.id} has ended already: it is {job.state}.")
    with writing(job.path):
        (job.path / "cancel").touch()
