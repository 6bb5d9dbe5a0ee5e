"""Every head as a point between two metrics. A click opens the head; a box drawn over points filters the table."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd
import streamlit as st

from views.address import held, hold
from views.charts import AROUND, LAYER, PICK, Layers
from views.head_grids import FAINT, FOCUS

BOX = "box"  # the name of the chart's selection, and of the choice in the URL
LEAST = 460  # pixels
Box = tuple[float, float, float, float]


def chart(
    table: pd.DataFrame,
    words: tuple[str, str],
    *,
    square_root: bool,
    kept: Collection[str],
    focus: str,
    box: Box | None,
) -> Layers:
    """Points coloured by layer; rows as head_space.joined makes them. box: x from, x to, y from, y to."""
    clicked = alt.selection_point(name=PICK, fields=["layer", "head"], on="click", empty=False)
    drawn: Any = {"x": list(box[:2]), "y": list(box[2:])} if box else alt.Undefined
    brush = alt.selection_interval(name=BOX, encodings=["x", "y"], value=drawn)
    marked = table.assign(kept=table["name"].isin(kept))
    base = alt.Chart(marked).encode(
        x=alt.X("x:Q", title=words[0], scale=_scale(table["x"], square_root)),
        y=alt.Y("y:Q", title=words[1], scale=_scale(table["y"], square_root)),
    )
    legend = alt.Legend(orient="top", gradientLength=200)
    points = base.mark_circle(size=64, cursor="pointer").encode(
        color=alt.Color("layer:Q", title="layer", scale=alt.Scale(scheme="viridis"), legend=legend),
        opacity=alt.condition("datum.kept", alt.value(0.85), alt.value(FAINT)),
        tooltip=[
            alt.Tooltip("name:N", title="name"),
            *_numbers("x", f"across: {words[0]}"),
            *_numbers("y", f"up: {words[1]}"),
        ],
    )
    one = base.transform_filter(alt.datum.name == focus)
    ring = one.mark_point(filled=False, size=200, stroke=FOCUS, strokeWidth=3, opacity=1, aria=False)
    at = table["x"][table["name"] == focus]
    left = bool(len(at)) and at.iloc[0] > (table["x"].min() + table["x"].max()) / 2
    label = one.mark_text(
        align="right" if left else "left",
        dx=-12 if left else 12,
        dy=-10,
        color=FOCUS,
        fontWeight=600,
        fontSize=13,
        aria=False,
    ).encode(text=alt.Text("name:N"))
    height = max(LEAST, AROUND + LAYER * table["layer"].nunique())  # as high as the grid beside it
    return alt.layer(points.add_params(clicked, brush), ring, label).properties(height=height)


def box_of(about: Sequence[str]) -> Box | None:
    """The box that the URL holds, while the chart shows what it was drawn on (`about`); else it is dropped."""
    if st.session_state.setdefault("box-about", list(about)) != list(about):
        st.session_state["box-about"] = list(about)
        hold(BOX, "")
    try:
        x0, x1, y0, y1 = (float(part) for part in held(BOX).split(","))
    except ValueError:
        hold(BOX, "")
        return None
    hold(BOX, held(BOX))
    return x0, x1, y0, y1


def first_box(key: str, box: Box | None) -> Box | None:
    """The box that a chart is drawn with: the one of the link. Later ones the chart knows already; were it told them
    again, it would begin anew after each."""
    if key not in st.session_state:
        st.session_state["box-first"] = box
    found: Box | None = st.session_state.get("box-first")
    return found


def follow_box(key: str) -> None:
    """Writes what was drawn into the URL; a box that was cleared leaves it."""
    drawn = st.session_state[key]["selection"].get(BOX) or {}
    if "x" in drawn and "y" in drawn:
        hold(BOX, ",".join(f"{value:.4g}" for value in [*sorted(drawn["x"]), *sorted(drawn["y"])]))
    elif not st.session_state[key]["selection"].get(PICK):
        hold(BOX, "")


def inside(table: pd.DataFrame, box: Box | None) -> set[str]:
    """Names of the points inside a box; all without one."""
    if box is None:
        return set(table["name"])
    return set(table["name"][table["x"].between(*box[:2]) & table["y"].between(*box[2:])])


def _scale(values: pd.Series, square_root: bool) -> alt.Scale:
    kind: Literal["linear", "sqrt", "symlog"]
    kind = "linear" if not square_root else "sqrt" if values.min() >= 0 else "symlog"
    near_zero = bool(0 <= values.min() < values.max() / 3)
    return alt.Scale(type=kind, zero=near_zero, nice=False, padding=10)


def _numbers(axis: str, words: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip(f"{axis}:Q", title=words, format=".3f"),
        alt.Tooltip(f"{axis} low:Q", title="95% from", format=".3f"),
        alt.Tooltip(f"{axis} high:Q", title="95% to", format=".3f"),
    ]
