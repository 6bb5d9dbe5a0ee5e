"""Head: what one head of a model does, from every finished run of that model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analysis.runs import Run
from probes.errors import HeadscopeError
from probes.heads import Head, parse_head
from views import (
    head_alike,
    head_by_length,
    head_copies,
    head_examples,
    head_verdict,
    head_writes,
    reading,
    role_tables,
    tables,
)
from views.address import chosen_run, pick, show
from views.change import change_button
from views.job_card import submit_button
from views.model_runs import by_command, head_names, head_tables, of_model
from views.next_steps import asked_model
from views.pages import Page
from views.run_words import plain

PAGE = Page("Head", ":material/search:", "Heads", 20, opens=("retrieval", "circuits"))


def page() -> None:
    title = st.empty()
    title.title("Head")
    st.caption("What one head does: its roles, where it looks, what it writes, and which heads are like it.")
    run = chosen_run()
    there = of_model(run)
    frames, problems = head_tables(there)
    if problems and not frames:
        raise HeadscopeError(problems[0])
    for sentence in problems:
        st.warning(plain(sentence))
    names = head_names(run, frames.values())
    if not names:
        st.info("No finished run of this model says which heads it has: type `headscope heads`.")
        st.stop()
    name = _choose(run, names, frames)
    title.title(f"Head {name}")
    _about(run, there, frames, parse_head(name))


def _about(run: Run, there: Sequence[Run], frames: Mapping[str, pd.DataFrame], head: Head) -> None:
    model = asked_model(run)
    runs = {each.id: each for each in there if each.id in frames}
    roles = next((reading.summary(each) for each in by_command(runs.values())["heads"]), None)
    near = head_alike.nearest(frames, head)
    head_verdict.section(reading.model_name(run), runs, frames, head, _confirmed(roles, head))
    if not isinstance(near, str):
        head_alike.links(run, near)
    _roles(roles, head, model)
    of = by_command(there)
    _section(head_examples.section, of["map"], head, model)
    _section(head_copies.section, of["retrieval"], head, model)
    _section(head_writes.section, of["circuits"], of["patch"], head, model)
    _section(head_by_length.section, of["retrieval"], of["sinks"], head, model)
    head_alike.section(runs, frames, near, head)


def _section(draw: Callable[..., None], *asked: Any) -> None:
    """What a damaged run says takes the place of its section; the others stand."""
    try:
        draw(*asked)
    except HeadscopeError as error:
        st.warning(plain(str(error)))


def _confirmed(roles: Mapping[str, Any] | None, head: Head) -> list[str] | None:
    if roles is None:
        return None
    return next((list(row["confirmed"]) for row in roles["heads"] if row["head"] == str(head)), [])


def _roles(summary: dict[str, Any] | None, head: Head, model: str) -> None:
    st.subheader("Its roles")
    if summary is None:
        st.markdown("No run has asked yet what every head of this model is for.")
        submit_button("Ask what every head is for", ["heads", "--model", model], key="head-roles")
        return
    name = str(head)
    st.dataframe(
        role_tables.evidence_of_head(summary, name),
        hide_index=True,
        alt=f"Evidence for and against each role of {name}, on both halves of prompts",
    )
    st.caption(
        "A role is chosen where the mean of one half of the prompts reaches its threshold, and confirmed where the "
        f"other half agrees. Intervals: {summary['confidence']:.0%} over the prompts of that other half."
    )


def _choose(run: Run, names: list[str], frames: Mapping[str, pd.DataFrame]) -> str:
    """Previous and next buttons around a list of every head, and the one that changes it."""
    if asked := st.query_params.get("head"):
        parse_head(asked)
    first = next(iter(frames.values()), None)
    default = None if first is None else tables.heads_table(first, first["metric"].iloc[0])["name"].iloc[0]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        before, field, after, change = st.empty(), st.container(width=130), st.empty(), st.container(width="content")
    name = pick("Head", "head", names, default=default, place=field)
    at = names.index(name)
    for place, words, to in ((before, "← Previous", at - 1), (after, "Next →", at + 1)):
        there = 0 <= to < len(names)
        place.button(words, disabled=not there, on_click=show, args=("head", names[to] if there else name))
    with change:
        change_button(run, [name])
    return name


if __name__ == "__main__":
    page()
