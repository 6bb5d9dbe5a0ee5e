"""The operation of the Bench form: chosen from a list, its settings as fields, and what it is for."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from analysis.bench.kinds import AS_WRITTEN, LEFT_OUT, Field, Kind, kind_of, kinds, values_of
from analysis.bench.parts import read_operation
from analysis.operations import Operation
from probes.errors import HeadscopeError
from views import bench_fields
from views.address import held, hold
from views.run_words import plain

FIRST = "query_zero"
KIND = "bench-kind"
REFUSED = "bench-refused"  # why the last value of a field was not taken
RANGES = ("0:1", "1:", "-8:", "generated", "all")
SPAN_HELP = (
    "A span that the prompts of the tasks have, or positions: 0:1 is the first token, 1: all others, -8: the last "
    "eight; generated, all; several joined by +. Type any other."
)


def choose(spans: Sequence[str]) -> Operation:
    """The operation that the URL holds as `do`, and the fields that change it. spans: those that every task has."""
    operation = _held()
    hold("do", str(operation))
    name = kind_of(operation) if _holds(operation) else AS_WRITTEN
    st.session_state[KIND] = name
    names = [*kinds(), *([AS_WRITTEN] if name == AS_WRITTEN else [])]
    left, right = st.columns([1, 2])
    left.selectbox("Operation", names, key=KIND, on_change=_follow_kind, help="What is done to the heads.")
    with right:
        if name == AS_WRITTEN:
            st.markdown(f"{plain(str(operation))} has no fields here: change it in the text below.")
        else:
            _fields(kinds()[name], values_of(operation), spans)
    if name != AS_WRITTEN:
        st.caption(f"**{plain(name)}** {plain(kinds()[name].does)} {plain(kinds()[name].when)}")
    if refused := st.session_state.pop(REFUSED, ""):
        st.error(plain(refused))
    return operation


def left_out(lacking: dict[str, list[str]]) -> None:
    """What the lists above do not offer, and why."""
    with st.expander("What is not offered here, and why"):
        for name, reason in LEFT_OUT.items():
            st.markdown(f":gray[**{plain(name)}** {plain(reason)}.]")
        for span, tasks in lacking.items():
            st.markdown(f":gray[The span **{plain(span)}**: {plain(', '.join(tasks))} has none.]")


def _holds(operation: Operation) -> bool:
    """Whether fields can hold its numbers: a browser knows whole ones up to here."""
    numbers = [value for value in vars(operation).values() if isinstance(value, int)]
    return all(abs(number) < 2**53 for number in numbers)


def _held() -> Operation:
    asked = held("do") or FIRST
    try:
        return read_operation(asked)
    except HeadscopeError as error:
        st.warning(f"The link asks for an operation that can't be read; shown is {plain(FIRST)}. {plain(str(error))}")
        return kinds()[FIRST].default


def _fields(kind: Kind, values: dict[str, Any], spans: Sequence[str]) -> None:
    if not kind.fields:
        return

    def follow() -> None:
        try:
            made = kind.make(**{field.name: st.session_state[_key(kind, field)] for field in kind.fields})
        except HeadscopeError as error:
            st.session_state[REFUSED] = str(error)
        else:
            hold("do", str(made))

    for field, place in zip(kind.fields, st.columns(len(kind.fields), vertical_alignment="bottom"), strict=True):
        key, value = _key(kind, field), values[field.name]
        if field.kind == "span":
            options = [*spans, *RANGES]
            bench_fields.open_choice(field.words, key, value, options, follow, place=place, help=SPAN_HELP)
            continue
        st.session_state[key] = value
        if field.kind == "choice":
            place.selectbox(field.words, field.choices, key=key, on_change=follow)
        elif field.kind == "flag":
            place.checkbox(field.words, key=key, on_change=follow)
        else:
            _number(field, key, follow, place)


def _number(field: Field, key: str, follow: Any, place: Any) -> None:
    whole = field.kind == "whole"
    cast = int if whole else float
    place.number_input(
        field.words,
        min_value=None if field.low is None else cast(field.low),
        max_value=None if field.high is None else cast(field.high),
        value=None if field.default is None else "min",
        step=1 if whole else 0.1,
        format="%d" if whole else "%g",
        key=key,
        on_change=follow,
    )


def _key(kind: Kind, field: Field) -> str:
    return f"bench-{kind.name}-{field.name}"


def _follow_kind() -> None:
    hold("do", str(kinds()[st.session_state[KIND]].default))
