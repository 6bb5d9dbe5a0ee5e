"""Whom the Bench form asks: tasks, how many examples, how many random sets, and the seed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import streamlit as st

from analysis.bench import tasks
from analysis.bench.question import CONTROLS, COUNT, SEED, TASKS
from analysis.selection import arguments
from probes.errors import HeadscopeError
from views import bench_fields
from views.address import held, hold
from views.run_words import plain

if TYPE_CHECKING:
    from analysis.tasks import Task

LIST = "bench-tasks"
NO_TASKS, NONE = "Choose at least one task.", "none"  # said, and held in the URL
MOST_EXAMPLES, MOST_CONTROLS = 2000, 20


def wanted() -> str:
    """The tasks that the URL holds, as --task takes them."""
    return held("tasks") or TASKS


def chosen() -> tuple[dict[str, "Task"], list[str]]:
    """The same by name, and what is wrong with them."""
    try:
        return tasks.chosen(wanted()), []
    except HeadscopeError as error:
        return {}, [NO_TASKS if wanted() == NONE else str(error)]


def choose(asked_of: Mapping[str, "Task"]) -> tuple[int, int, int]:
    """Fields for all of it; returns the number of examples, that of random sets, and the seed."""
    terms = _terms(wanted())
    st.session_state[LIST] = terms
    st.multiselect(
        "Tasks",
        list(dict.fromkeys([*terms, *tasks.offered()])),
        key=LIST,
        accept_new_options=True,
        on_change=lambda: hold("tasks", ", ".join(st.session_state[LIST]) or NONE),
        help="Type one with settings, such as needle(lengths=256+512) or copying(length=32).",
    )
    hold("tasks", wanted())
    for name, task in asked_of.items():
        st.caption(f"**{plain(name)}** {plain(task.about)} Measured: {task.metric}, {task.better} is better.")
    left, middle, right = st.columns(3)
    return (
        bench_fields.whole(
            "Examples of each task", "count", COUNT, least=2, most=MOST_EXAMPLES, place=left,
            help="More examples, narrower intervals.",
        ),
        bench_fields.whole(
            "Sets of random heads", "controls", CONTROLS, least=0, most=MOST_CONTROLS, place=middle,
            help="As many random heads of the same layers, changed alike: what the choice of heads adds.",
        ),
        bench_fields.whole(
            "Seed", "seed", SEED, least=0, most=10**9, place=right,
            help="Everything random is drawn from this: examples and controls.",
        ),
    )  # fmt: skip


def _terms(text: str) -> list[str]:
    """The tasks one by one; where brackets don't match, all as one."""
    try:
        return [] if text == NONE else arguments(text)
    except HeadscopeError:
        return [text]
