"""Jobs that have ended: all in a table, one of them with its log and with what can be done about it."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pandas as pd
import streamlit as st

from analysis.jobs.job import Job
from analysis.jobs.line import parse
from analysis.jobs.showing import duration
from probes.errors import HeadscopeError
from views import reading
from views.address import held, hold
from views.job_card import draw_job, show_refusal, submit_line
from views.unseen import seen

LAST_WORDS = 30  # lines of the log


def ended_jobs(ended: Sequence[Job]) -> None:
    """Newest first. The one that is shown whole is the `job` of the URL."""
    if not ended:
        st.info("No job has ended yet.")
        return
    asked = held("job")
    chosen = next((job for job in ended if job.id == asked), ended[0])
    st.dataframe(
        pd.DataFrame([_row(job) for job in ended]),
        hide_index=True,
        height=min(38 + 35 * len(ended), 290),
        key="ended-jobs",
        on_select=_follow_row(ended),
        selection_mode="single-row",
        alt=f"Table of {len(ended)} ended jobs: state, command, end, time taken and what came of it",
    )
    st.caption(f"Shown below: {chosen.id}. Choose another by its row.")
    draw_job(chosen)
    _once_more(chosen)
    words = chosen.last_words(LAST_WORDS)
    with st.expander("Last words of its log"):
        st.code(seen("\n".join(words)) or "It said nothing.", language=None, wrap_lines=True)


def _row(job: Job) -> dict[str, object]:
    facts = job.facts
    took = facts.ended - facts.started if facts.ended and facts.started else None
    return {
        "state": job.state,
        "command": seen(job.spec.command),
        "ended (UTC)": f"{datetime.fromtimestamp(facts.ended, UTC):%Y-%m-%d %H:%M}" if facts.ended else "",
        "took": "" if took is None else duration(took),
        "came of it": seen(facts.sentence or facts.run or ""),
    }


def _follow_row(ended: Sequence[Job]) -> Callable[[], None]:
    def follow() -> None:
        rows = st.session_state["ended-jobs"]["selection"]["rows"]
        if rows and rows[0] < len(ended):
            hold("job", ended[rows[0]].id)

    return follow


def _once_more(job: Job) -> None:
    """Go on with what was not finished, or ask the same again."""
    with st.container(horizontal=True):
        if job.state != "done" and (resumed := _resumed(job)):
            st.button(
                "Go on",
                icon=":material/resume:",
                key="go-on",
                help="Queues it with --resume: what is finished is not done again.",
                on_click=submit_line,
                args=(resumed, "again"),
                kwargs={"asked_in": job.spec.folder},
            )
        st.button(
            "Submit again",
            icon=":material/replay:",
            key="submit-again",
            on_click=submit_line,
            args=(job.spec.arguments, "again"),
            kwargs={"asked_in": job.spec.folder},
        )
    show_refusal("again")


def _resumed(job: Job) -> list[str] | None:
    """The job's line with the run that it left unfinished; None where there is none, or its verb can't go on."""
    run = next((run for run in reading.runs()[0] if run.id == job.facts.run), None)
    try:
        if run is None or run.finished or not parse(job.spec.arguments).takes_resume:
            return None
    except HeadscopeError:
        return None  # a line of another version
    verb, *rest = job.spec.arguments
    return [verb, "--resume", run.id, *rest]
