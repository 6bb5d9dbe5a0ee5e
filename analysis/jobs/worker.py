"""The worker: takes the jobs of one folder in order, one at a time, and keeps the last model in memory."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import analysis.commands  # noqa: F401  (torch and Transformers: a job that is cancelled must not stop their import)
from analysis.jobs.folder import jobs
from analysis.jobs.job import WAITING, Job, write_facts
from analysis.jobs.running import Running
from analysis.jobs.slot import Slot

INTERVAL = 0.2  # seconds between two looks for work
ATTEMPTS = 3  # workers that may die of one job


def work(out: Path, folder: Path, *, idle: float) -> None:
    """Run jobs until there were none for `idle` seconds. This process must hold the folder's lock.

    A KeyboardInterrupt leaves the job at hand interrupted, for the next worker to go on with.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    slot = Slot(folder)
    quiet_since = time.monotonic()
    try:
        while True:
            slot.drop_if_asked()
            if job := next_job(out):
                if Running(job, out, slot).run() == "interrupted":
                    raise KeyboardInterrupt
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= idle:
                return
            else:
                time.sleep(INTERVAL)
    finally:
        slot.drop()


def next_job(out: Path) -> Job | None:
    """The first job that waits. Those that were cancelled while they waited, or that killed their workers, end here."""
    for job in jobs(out)[0]:
        facts = job.facts
        if facts.state not in WAITING:
            continue
        if job.asked_to_stop:
            write_facts(job.path, replace(facts, state="cancelled", ended=time.time()))
        elif facts.attempts >= ATTEMPTS:
            sentence = f"The worker ended {facts.attempts} times in the middle of this job: ask for less at a time."
            write_facts(job.path, replace(facts, state="failed", sentence=sentence, ended=time.time()))
        else:
            return job
    return None
