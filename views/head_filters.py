"""Which heads a page keeps: by name, by role, and by thresholds on several metrics together. All of it in the URL."""

from typing import Any

import pandas as pd
import streamlit as st

from analysis import head_space
from analysis.head_space import Limit
from analysis.runs import Run
from probes.errors import HeadscopeError
from views import metrics, reading, role_tables, tables
from views.address import held, hold, pick
from views.run_words import plain

ANY = "any role"


def choose(run: Run, frame: pd.DataFrame) -> tuple[set[str], list[str]]:
    """Names of the heads kept, and what keeps them in words; no words where nothing is asked."""
    names = tables.head_order(frame)
    roles = roles_run(run, frame)
    active = any(held(name) for name in ("find", "where")) or (roles is not None and held("carries") not in ("", ANY))
    with st.expander("Filter heads", expanded=active, icon=":material/filter_alt:"):
        left, right = st.columns(2)
        text = _text(left)
        role = _role(roles, right)
        limits = _limits(run, metrics.metric_order(run))
    kept, said = set(names), []
    try:
        kept &= head_space.named(names, text)
    except HeadscopeError as error:
        st.warning(plain(str(error)))
        text = ""
    if text:
        said.append(text)
    if roles is not None and role != ANY:
        kept &= with_role(roles, role)
        said.append(f"{role} by run {roles.id}" if role == role_tables.NO_ROLE else f"role {role} by run {roles.id}")
    kept &= head_space.within(frame, limits)
    return kept, said + [words for limit in limits if (words := _words(run, limit))]


def roles_run(run: Run, frame: pd.DataFrame) -> Run | None:
    """The newest finished run of every head's roles on the same weights."""
    for other in reading.runs()[0]:
        same = other.manifest.get("model", {}).get("sha256") == run.manifest.get("model", {}).get("sha256")
        if reading.command(other) == "heads" and other.finished and same:
            return other if head_space.same_size(frame, reading.heads(other)) else None
    return None


def with_role(roles: Run, role: str) -> set[str]:
    return {row["head"] for row in reading.summary(roles)["heads"] if role_tables.carries(row, role)}


def _text(place: Any) -> str:
    st.session_state["filter-find"] = held("find")
    text: str = place.text_input(
        "By name",
        key="filter-find",
        placeholder="L17H4, L20, H3",
        help="A head, a whole layer, or one head of every layer; several with commas.",
        on_change=lambda: hold("find", st.session_state["filter-find"].strip()),
    )
    hold("find", text.strip())
    return text.strip()


def _role(roles: Run | None, place: Any) -> str:
    if roles is None:
        place.selectbox(
            "By role", [ANY], disabled=True, key="no-roles", help="Needs a run of `headscope heads` of the same model."
        )
        return ANY
    options = [ANY, *reading.summary(roles)["role_names"], role_tables.NO_ROLE]
    return pick("By role", "carries", options, place=place, help=f"Confirmed roles of the run {roles.id}.")


def _limits(run: Run, there: list[str]) -> list[Limit]:
    limits = {limit.metric: limit for limit in read_limits(held("where")) if limit.metric in there}
    st.session_state["filter-metrics"] = list(limits)

    def follow() -> None:
        chosen = st.session_state["filter-metrics"]
        hold("where", write_limits([limits.get(metric, Limit(metric)) for metric in chosen]))

    st.multiselect(
        "Thresholds on",
        there,
        key="filter-metrics",
        format_func=lambda name: metrics.metric_of(run, name).words,
        on_change=follow,
        placeholder="Choose metrics; a head must keep the limits of all",
    )
    found = [_limit(run, limit, limits) for limit in limits.values()]
    hold("where", write_limits(found))
    return found


def _limit(run: Run, limit: Limit, limits: dict[str, Limit]) -> Limit:
    words = metrics.metric_of(run, limit.metric).words
    keys = [f"limit-{limit.metric}-{side}" for side in ("low", "high")]

    def follow() -> None:
        changed = Limit(limit.metric, *(st.session_state[key] for key in keys))
        hold("where", write_limits((limits | {limit.metric: changed}).values()))

    left, right = st.columns(2)
    for place, key, side, value in ((left, keys[0], "at least", limit.low), (right, keys[1], "at most", limit.high)):
        st.session_state[key] = value
        place.number_input(
            f"{tables.capital(words)}: {side}", key=key, value=None, step=0.01, format="%g", on_change=follow
        )
    return limit


def read_limits(text: str) -> list[Limit]:
    """`retrieval_score:0.1:,locos::2`, as the URL holds it; terms that are none are left out."""
    found = []
    for term in text.split(","):
        metric, *ends = term.split(":")
        try:
            low, high = (float(end) if end else None for end in ends)
        except ValueError:
            continue
        found.append(Limit(metric, low, high))
    return found


def write_limits(limits: Any) -> str:
    return ",".join(f"{limit.metric}:{_end(limit.low)}:{_end(limit.high)}" for limit in limits)


def _end(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _words(run: Run, limit: Limit) -> str:
    sides = [f"≥ {limit.low:g}"] if limit.low is not None else []
    sides += [f"≤ {limit.high:g}"] if limit.high is not None else []
    return f"{metrics.metric_of(run, limit.metric).words} {' and '.join(sides)}" if sides else ""
