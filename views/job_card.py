"""One job on a page: how far it is, how to stop it, what came of it. And the button that asks for one."""

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress

import streamlit as st

from analysis.jobs.folder import cancel, jobs, submit
from analysis.jobs.job import LIVE, WORKING, Job
from analysis.jobs.lock import held
from analysis.jobs.serving import ensure_worker
from analysis.jobs.showing import steps
from probes.errors import HeadscopeError
from views import reading
from views.pages import pages_of
from views.run_words import plain
from views.unseen import seen

STARTS_WITHIN = 10.0  # seconds that a worker has to begin, before a job says that there is none
EVERY = 1.0  # seconds between two looks at a job that waits or works
WORDS = {
    "queued": ":material/schedule: Waiting",
    "loading": ":material/hourglass_top: Loading the model",
    "running": ":material/play_circle: Running",
    "done": ":material/check_circle: Done",
    "failed": ":material/error: Failed",
    "cancelled": ":material/cancel: Cancelled",
    "interrupted": ":material/pause_circle: Interrupted",
}


def job_card(job: Job) -> None:
    """A job that is looked at again every second until it ends; the sidebar's line then has the page drawn anew."""
    st.fragment(_card, run_every=EVERY if is_live(job) else None)(job)


def submit_button(label: str, arguments: Sequence[str], *, key: str, with_line: bool = False) -> None:
    """Queues a line (without the word headscope) and shows its job in place; one that is queued already is shown.

    with_line: the line, to be copied, stands beside the button.
    """
    same = [job for job in jobs(reading.runs_folder())[0] if job.spec.arguments == tuple(arguments)]
    newest = same[-1] if same else None
    if newest is not None and is_live(newest):
        job_card(newest)
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if with_line:
            st.code(seen(shlex.join(["headscope", *arguments])), language=None, wrap_lines=True)
        st.button(label, icon=":material/play_arrow:", key=f"submit-{key}", on_click=submit_line, args=(arguments, key))
    show_refusal(key)
    if newest is not None and newest.id == st.session_state.get(f"submitted-{key}"):
        job_card(newest)


def submit_line(arguments: Sequence[str], key: str, *, asked_in: str | None = None) -> None:
    """Queue a line and see to it that a worker lives. To be called back: the page that follows knows of the job."""
    st.session_state.pop(f"refused-{key}", None)
    try:
        st.session_state[f"submitted-{key}"] = submit(arguments, reading.runs_folder(), asked_in=asked_in).id
        ensure_worker(reading.runs_folder())
    except HeadscopeError as error:
        st.session_state[f"refused-{key}"] = str(error)


def show_refusal(key: str) -> None:
    """Why the last line of this key was not queued."""
    if refused := st.session_state.get(f"refused-{key}"):
        st.error(plain(refused))


def is_live(job: Job) -> bool:
    """Whether it waits or works."""
    return job.state in LIVE


def _card(job: Job) -> None:
    try:
        draw_job(job)
    except HeadscopeError as error:
        st.error(plain(str(error)))


def draw_job(job: Job) -> None:
    """What there is to say of a job now."""
    state = job.state
    with st.container(border=True):
        about = plain(_about(job))
        with st.container(horizontal=True, horizontal_alignment="distribute"):
            st.markdown(f"**{WORDS[state]}{':' if about else ''}** {about}", width="content")
            if is_live(job):
                st.button(
                    "Cancel",
                    icon=":material/stop:",
                    key=f"cancel-{job.id}",
                    help="What its run has finished stays, and can be gone on with.",
                    on_click=_cancel,
                    args=(job,),
                    disabled=job.asked_to_stop,
                )
        progress = job.progress()
        if state in (*WORKING, "interrupted") and progress is not None and progress.total > 0:
            st.progress(min(max(progress.done / progress.total, 0.0), 1.0), text=plain(steps(job)))
        st.code(seen(job.spec.command), language=None, wrap_lines=True)
        if not is_live(job):
            run_links(job)


def run_links(job: Job) -> None:
    """The pages on which a job's run can be looked at."""
    run = next((run for run in reading.runs()[0] if run.id == job.facts.run), None)
    if run is not None:
        with st.container(horizontal=True):
            for path, title in pages_of(reading.command(run)):
                st.page_link(path, label=f"Open {title}", query_params={"run": run.id}, icon=":material/arrow_forward:")
            st.page_link("views/runs.py", label="About", query_params={"run": run.id}, icon=":material/info:")


def _about(job: Job) -> str:
    """What the name of the state does not say."""
    facts = job.facts
    match job.state:
        case "queued" if not held(job.path.parent) and time.time() - facts.created < STARTS_WITHIN:
            return "a worker starts for it"
        case "queued" if not held(job.path.parent):
            return "no worker is at work; start one on the page Jobs"
        case "queued":
            before = [each for each in jobs(reading.runs_folder())[0] if each.id < job.id and is_live(each)]
            return f"{len(before)} before it" if before else "it is next"
        case "interrupted" if facts.state == "interrupted" and not held(job.path.parent):
            return "its worker was stopped; start one on the page Jobs, and it goes on where it was"
        case "interrupted":
            return "its worker ended in the middle of it; another one starts and goes on where it was"
        case "running" | "loading" if job.asked_to_stop:
            return "it was asked to stop"
        case "running" if facts.attempts > 1:
            return "a worker ended in the middle of it, and another went on where it was"
        case "failed":
            return facts.sentence or "its log says why"
        case "cancelled" if facts.run:
            return "what its run had finished stays, and can be gone on with on the page Jobs"
    return ""


def _cancel(job: Job) -> None:
    with suppress(HeadscopeError):  # it has just ended, and the card says how
        cancel(job)
