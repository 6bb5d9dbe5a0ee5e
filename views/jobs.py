"""Jobs: what is computed, what waits, what has ended; the worker and its model; a field for any command line."""

import shlex
from collections.abc import Sequence

import streamlit as st

from analysis.jobs.folder import jobs
from analysis.jobs.job import WORKING, Job
from probes.errors import HeadscopeError
from views import reading
from views.ended_jobs import ended_jobs
from views.job_card import EVERY, draw_job, is_live, show_refusal, submit_line
from views.pages import Page
from views.run_words import plain
from views.worker import draw_worker, load_form

PAGE = Page("Jobs", ":material/conveyor_belt:", "Change", 20)

QUIET = 5.0  # seconds between two looks where nothing waits or works
MOST = 6  # cards of jobs that wait


def page() -> None:
    st.title("Jobs")
    st.caption("What is computed now, what waits and what has ended. One worker takes the jobs in their order.")
    found, problems = jobs(reading.runs_folder())
    for sentence in problems:
        st.warning(plain(sentence))
    live = [job for job in found if is_live(job)]
    st.fragment(_at_work, run_every=EVERY if live else QUIET)(live)
    st.subheader("Load a model")
    st.caption("It stays in memory until another is needed, so that the next job begins at once.")
    load_form()
    st.subheader("Run a command")
    _field()
    st.subheader("Ended")
    ended_jobs([job for job in reversed(found) if not is_live(job)])


def _at_work(known: Sequence[Job]) -> None:
    """Everything that changes by itself. known: the jobs that waited or worked when the page was drawn."""
    try:
        live = [job for job in jobs(reading.runs_folder())[0] if is_live(job)]
        if live != list(known):
            st.rerun()
        draw_worker(working=any(job.state in WORKING for job in live))
        st.subheader("At work and waiting")
        if not live:
            st.info("Nothing waits. Type a command below, or take one of those that Home suggests.")
        for job in live[:MOST]:
            draw_job(job)
        if len(live) > MOST:
            st.markdown(f"And {len(live) - MOST} more.")
    except HeadscopeError as error:
        st.error(plain(str(error)))


def _field() -> None:
    with st.form("line-form", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "headscope ...", key="line", bind="query-params", placeholder="retrieval --grid quick",
            help="A verb and its options, as they follow the word headscope. `headscope --help` lists the verbs.",
        )  # fmt: skip
        st.form_submit_button("Run", icon=":material/play_arrow:", on_click=_submit_typed)
    show_refusal("line")


def _submit_typed() -> None:
    """The field is emptied once its line waits."""
    try:
        words = shlex.split(st.session_state["line"])
    except ValueError as error:
        st.session_state["refused-line"] = f"The line can't be read: {str(error).lower()}."
        return
    submit_line(words[1:] if words[:1] == ["headscope"] else words, "line")
    if "refused-line" not in st.session_state:
        st.session_state["line"] = ""


if __name__ == "__main__":
    page()
