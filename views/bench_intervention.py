"""The intervention of the Bench form: operation, queries and phase as fields, and all of it as a text to edit."""

from collections.abc import Sequence

import streamlit as st

from analysis.bench.kinds import takes_queries
from analysis.bench.parts import PHASES, Parts, parts_of
from analysis.interventions import EVERY
from probes.errors import HeadscopeError
from views import bench_fields, bench_operation
from views.address import held, hold, pick
from views.run_words import plain

TEXT, TYPED, QUERIES = "bench-text", "bench-typed", "bench-on"
MEND = "The text of the intervention can't be read: mend it, or change a field above to drop it."


def choose(heads: str, spans: Sequence[str]) -> Parts:
    """What the URL holds of it beside its heads, and the fields that change it. spans: those that every task has."""
    operation = bench_operation.choose(spans)
    left, right = st.columns(2)
    takes = takes_queries(operation)
    queries = (held("on") or EVERY) if takes else EVERY
    bench_fields.open_choice(
        "Queries",
        QUERIES,
        queries,
        [EVERY, "last", "generated", *spans],
        lambda: hold("on", st.session_state[QUERIES]),
        place=left,
        disabled=not takes,
        help="Whose attention is changed: all tokens, the newest of each forward (last), generated ones, or a span."
        if takes
        else f"{plain(str(operation))} acts whatever the query.",
    )
    hold("on", queries)
    phase = pick(
        "Phase", "phase", PHASES, kind="buttons", place=right,
        help="Prefill: while the prompt is read. Decode: while the answer is written.",
    )  # fmt: skip
    if "change" in st.query_params and "more" not in st.query_params:
        hold("more", "")  # heads that were picked anew begin a new intervention
    hold("more", held("more"))
    return Parts(heads, str(operation), queries, phase, held("more"))


def hold_parts(parts: Parts) -> None:
    """Put an intervention into the URL."""
    hold("change", parts.heads)
    hold("do", parts.operation)
    hold("on", parts.queries)
    hold("phase", parts.phase)
    hold("more", parts.more)


def edit(parts: Parts) -> bool:
    """The intervention as text. What is typed and can't be read stays until it is mended or a field takes its place.

    Returns whether the text is that of `parts`.
    """
    about, typed = st.session_state.get(TYPED, ("", ""))
    wrong = about == parts.text  # else a field has changed the intervention since
    st.session_state[TEXT] = typed if wrong else parts.text if parts.heads else ""

    def follow() -> None:
        asked = st.session_state[TEXT]
        st.session_state.pop(TYPED, None)
        try:
            hold_parts(parts_of(asked))
        except HeadscopeError:
            st.session_state[TYPED] = (parts.text, asked)

    st.text_area(
        "The intervention as text",
        key=TEXT,
        height="content",
        on_change=follow,
        placeholder="OPERATION @ HEADS on QUERIES in PHASE",
        help="OPERATION @ HEADS [on QUERIES] [in PHASE]; several are joined by a semicolon.",
    )
    if wrong:
        st.error(plain(_why_not(typed)))
    elif parts.more:
        st.caption(f"The fields above change the first intervention; after it comes {plain(parts.more)}")
    return not wrong


def _why_not(text: str) -> str:
    try:
        parts_of(text)
    except HeadscopeError as error:
        return str(error)
    return ""
