"""One trace on the page Rhythm: its text tinted token by token, and under it the sawtooth and the influence curve."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from analysis.rhythm.head_sets import HeadSets
from analysis.rhythm.kept_arrays import kept
from analysis.rhythm.peaks import parse_rule
from analysis.rhythm.showing import chosen_sets, shown_trace
from analysis.runs import Run
from probes.errors import HeadscopeError
from views import charts, reading, rhythm_charts, tables, trace, trace_tables
from views.address import forget, pick, show
from views.downloads import data_buttons
from views.run_words import plain
from views.unseen import seen

MOST = 600  # tokens on screen at once
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
LAYERS = ("all", "lower", "middle", "upper")
SINK = {"counted": "counted", "out": "left out"}
SLIDER = SimpleNamespace(selectbox=st.select_slider)  # takes what a list takes


def section(run: Run, summary: Mapping[str, Any]) -> None:
    st.subheader("One trace")
    case = _trace(run)
    with st.container(horizontal=True):
        by = pick("Tint by", "tint", list(trace_tables.SERIES), words=trace_tables.SERIES.__getitem__, kind="buttons")
        horizon = _horizon(summary)
    sets = _sets(run, summary["settings"])
    if sets is None:
        return
    arrays = kept(run.path / "arrays" / Path(case["arrays"]).name)
    rule = parse_rule(summary["settings"]["peaks"])
    shown = shown_trace(arrays, sets, horizon=list(summary["horizons"]).index(horizon), rule=rule)
    frame = trace_tables.token_table(case, shown)
    chosen, part = _token(frame)
    if case["question"]:
        st.text(seen(case["question"]))
    _text(run, case["case"], frame, part, by, chosen)
    st.markdown(trace_tables.token_words(frame, chosen))
    _curves(part, summary, horizon, chosen)
    data_buttons(frame, f"{run.id}-{case['case']}", of="the tokens")


def _trace(run: Run) -> dict[str, Any]:
    cases = {case["case"]: case for case in reading.cases(run)}
    forget("trace", unless=list(cases))
    words = {name: trace_tables.trace_words(case) for name, case in cases.items()}
    name = pick("Trace", "trace", list(cases), words=words.__getitem__)
    if st.session_state.setdefault("token of", name) != name:  # a position means another token in another trace
        forget("token", unless=())
        st.session_state["token of"] = name
    return cases[name]


def _horizon(summary: Mapping[str, Any]) -> str:
    horizons = summary["horizons"]
    return pick(
        "Horizon of FAI",
        "horizon",
        list(horizons),
        default=summary["settings"]["horizon"],
        kind="buttons",
        help="How far ahead of a token its influence is counted: "
        + "; ".join(trace_tables.horizon_words(name, each) for name, each in horizons.items()),
    )


def _sets(run: Run, settings: Mapping[str, Any]) -> HeadSets | None:
    """The heads that the reader chooses; None, and why, where the choices leave none."""
    shares = [str(share) for share in sorted({*SHARES, settings["share"]})]
    own = settings["layers"] if isinstance(settings["layers"], str) else ",".join(map(str, settings["layers"]))
    with st.expander("Which heads are local, and which global"):
        share = pick(
            "Share of the heads in either set", "share", shares, default=str(settings["share"]), place=SLIDER,
            words=lambda value: f"{float(value):.0%}",
        )  # fmt: skip
        layers = pick(
            "Layers", "layers", list(dict.fromkeys([*LAYERS, own])), default=own, kind="buttons",
            help="Lower and upper: a third of the layers. Middle: five of the middle third, as the paper trains with.",
        )  # fmt: skip
        sink = pick(
            "Attention on the first token", "sink", list(SINK), words=SINK.__getitem__, kind="buttons",
            default="out" if settings["exclude_sink"] else "counted", help="As heads are ranked by distance.",
        )  # fmt: skip
        numbers = layers if layers in LAYERS else [int(number) for number in layers.split(",")]
        try:
            sets = chosen_sets(reading.heads(run), share=float(share), layers=numbers, exclude_sink=sink == "out")
        except HeadscopeError as error:
            st.warning(plain(str(error)))
            return None
        st.markdown(trace_tables.set_words(sets))
    return sets


def _token(frame: pd.DataFrame) -> tuple[int, pd.DataFrame]:
    """The position that is chosen, and the tokens around it that are on screen."""
    positions = [str(position) for position in frame["position"]]
    forget("token", unless=positions)
    asked = st.query_params.get("token") or str(trace_tables.clearest(frame))
    start = positions.index(asked) // MOST * MOST
    part = frame.iloc[start : start + MOST]
    here = positions[start : start + MOST]
    words = dict(zip(here, trace_tables.option_words(part), strict=True))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        before, field, after = st.empty(), st.container(width=220), st.empty()
    chosen = pick("Token (or click one below)", "token", here, default=asked, words=words.__getitem__, place=field)
    at = positions.index(chosen)
    for place, label, to in ((before, "←", at - 1), (after, "→", at + 1)):
        there = 0 <= to < len(positions)
        place.button(
            label, help="The token before" if to < at else "The token after", disabled=not there,
            on_click=show, args=("token", positions[to] if there else chosen),
        )  # fmt: skip
    if len(part) < len(frame):
        _parts(positions, start)
    return int(chosen), part


def _parts(positions: list[str], start: int) -> None:
    end = min(start + MOST, len(positions))
    with st.container(horizontal=True, vertical_alignment="center"):
        for label, to in (("Earlier tokens", start - MOST), ("Later tokens", start + MOST)):
            there = 0 <= to < len(positions)
            args = ("token", positions[to] if there else "")
            st.button(label, disabled=not there, on_click=show, args=args)
        st.caption(f"Tokens {start + 1:,} to {end:,} of {len(positions):,}")


def _text(run: Run, name: str, frame: pd.DataFrame, part: pd.DataFrame, by: str, chosen: int) -> None:
    choices = {**st.query_params.to_dict(), "run": run.id, "trace": name}
    span, colour = trace_tables.span_of(frame, by), rhythm_charts.TINTS[by]
    html = trace.trace_html(
        trace_tables.pieces(part, by),
        span=span,
        colour=colour,
        first=int(part["position"].iloc[0]),
        chosen=chosen,
        link=lambda position: "?" + urlencode({**choices, "token": position}),
    )
    st.html(trace.LEGEND + html)
    st.html(trace.colour_bar_html(trace_tables.SERIES[by], (tables.number(span[0]), tables.number(span[1])), colour))


def _curves(part: pd.DataFrame, summary: Mapping[str, Any], horizon: str, chosen: int) -> None:
    for name in rhythm_charts.TITLE:
        key = f"rhythm-{name}"
        st.altair_chart(
            rhythm_charts.over_positions(part, name, chosen=chosen),
            key=key,
            on_select=lambda key=key: _follow_point(key),
            alt=f"{rhythm_charts.TITLE[name]} over {len(part)} tokens, {part[f'{name} peak'].sum()} peaks marked, "
            "and those of pairs near the chosen token numbered; the download below holds the same numbers",
        )
    st.caption(trace_tables.curve_words(summary, horizon))


def _follow_point(key: str) -> None:
    for point in st.session_state[key].selection[charts.PICK]:
        show("token", str(int(point["position"])))
