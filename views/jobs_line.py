"""The line in the sidebar of every page while a job works or waits, and what has just ended, with where to look at it.

Where a worker died in the middle of a job, the dashboard starts the next one: at its own start, and while it is open.
"""

import time
from collections.abc import Sequence

import streamlit as st

from analysis.jobs.folder import jobs
from analysis.jobs.job import LIVE, WORKING, Job, State
from analysis.jobs.lock import held
from analysis.jobs.serving import replace_dead_worker
from analysis.jobs.showing import duration
from probes.errors import HeadscopeError
from views import reading
from views.job_card import EVERY, WORDS, is_live
from views.pages import pages_of
from views.run_words import plain

NEWS = 120.0  # seconds for which an ended job is named
PATIENCE = 10.0  # seconds that a worker has to begin, before another is started

_started = 0.0


def jobs_line() -> None:
    """Draws nothing where nothing waits or works, and none that this browser saw at work has ended just now."""
    _replace_dead_worker()
    found = jobs(reading.runs_folder())[0]
    live = [job for job in found if is_live(job)]
    watched: set[str] = st.session_state.setdefault("watched-jobs", set())
    watched.update(job.id for job in live)
    with st.sidebar:
        for job in found:
            if job.id in watched and not is_live(job) and (job.facts.ended or 0.0) > time.time() - NEWS:
                _ended(job)
        if live:
            st.fragment(_line, run_every=EVERY)(live)


def _line(were_live: Sequence[Job]) -> None:
    try:
        states = [(job, job.state) for job in were_live]  # read once: a job can end between two looks
        if any(state not in LIVE for _, state in states):
            st.rerun()  # what has ended brings a run, which every page should know of
        _replace_dead_worker()
        first, state = next((each for each in states if each[1] in WORKING), states[0])
        words = f"{_verb(first)}: {_now(first, state)}"
        st.page_link("views/jobs.py", label=plain(words), icon=":material/conveyor_belt:")
        if waiting := len(states) - 1:
            st.caption(f"{waiting} more {'waits' if waiting == 1 else 'wait'}")
    except HeadscopeError as error:
        st.error(plain(str(error)))


def _now(job: Job, state: State) -> str:
    progress = job.progress()
    if state == "running" and progress is not None:
        left = f", {duration(progress.seconds_left)} left" if progress.seconds_left else ""
        return f"{progress.done} of {progress.total}{left}"
    if state == "queued" and not held(job.path.parent):
        return "waiting for a worker"
    return WORDS[state].split(" ", 1)[1].lower()


def _ended(job: Job) -> None:
    """Where to look at what came of it: the first page of its run, or its line among the jobs."""
    run = next((run for run in reading.runs()[0] if run.id == job.facts.run), None)
    words, icon = f"{_verb(job)}: {WORDS[job.state].split(' ', 1)[1].lower()}", WORDS[job.state].split(" ", 1)[0]
    if job.state == "done" and run is not None and (pages := pages_of(reading.command(run))):
        st.page_link(pages[0][0], label=plain(words), query_params={"run": run.id}, icon=icon)
    else:
        st.page_link("views/jobs.py", label=plain(words), query_params={"job": job.id}, icon=icon)


def _verb(job: Job) -> str:
    return job.spec.arguments[0]


def _replace_dead_worker() -> None:
    """Not more often than a worker takes to begin, however many browsers look."""
    global _started
    if time.monotonic() - _started > PATIENCE and replace_dead_worker(reading.runs_folder()):
        _started = time.monotonic()
