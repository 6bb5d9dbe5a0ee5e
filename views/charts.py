"""The charts. Colours read on a light and on a dark page, in grey, and with the common colour blindnesses.

Grids are Altair rects: a click on a Plotly heat map reaches no one in Streamlit 1.67 (streamlit/streamlit#8760).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd
from altair.utils import schemapi

ABLATED = "#d55e00"
CONTROL = "#3d8fc4"
NEUTRAL = "#888888"
Layers = alt.LayerChart | alt.FacetChart

# Okabe and Ito's, which the common colour blindnesses leave apart; letters for a page in grey.
ROLE_COLOURS = {
    "sink": "#56b4e9",
    "do-nothing": "#f0e442",
    "local": "#009e73",
    "previous-token": "#0072b2",
    "induction": "#cc79a7",
    "duplicate-token": "#e69f00",
    "retrieval": "#d55e00",
}
ROLE_LETTERS = {
    "sink": "S",
    "do-nothing": "N",
    "local": "L",
    "previous-token": "P",
    "induction": "I",
    "duplicate-token": "D",
    "retrieval": "R",
}

PICK = "pick"  # the name of a grid's selection
LAYER = 15  # pixels of a layer's row: thirty are seen at once on a desk's screen
AROUND = 165  # Streamlit fits the legend and the axes inside a chart's height


def trust() -> None:
    """Draw charts unchecked from now on: Altair's check against the schema of Vega-Lite takes a third of a page's time.

    For the server; tests draw every chart checked.
    """
    schemapi.disable_debug_mode()
    schemapi.SchemaBase.validate = classmethod(lambda *_: None)  # type: ignore[assignment, method-assign]


def head_grid(frame: pd.DataFrame, words: str, *, square_root: bool) -> alt.Chart:
    """Layers down, heads across, one colour scale from 0 (or the smallest value below) to the largest value."""
    top = max(float(frame["value"].max()), 1e-9)
    bottom = min(float(frame["value"].min()), 0.0)
    # Square roots spread small values; Vega has a kind for values on both sides of 0 too.
    kind: Literal["linear", "sqrt", "symlog"] = "linear" if not square_root else "sqrt" if bottom >= 0 else "symlog"
    scale = alt.Scale(scheme="viridis", type=kind, domain=[bottom, top])
    clicked = alt.selection_point(name=PICK, fields=["layer", "head"], on="click", empty=False)
    cells = alt.Chart(frame).mark_rect(cursor="pointer", stroke=NEUTRAL, strokeOpacity=0.35, strokeWidth=0.5)
    coloured = cells.encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
        color=alt.Color("value:Q", title=words, scale=scale, legend=alt.Legend(orient="top", gradientLength=200)),
        tooltip=[
            alt.Tooltip("name:N", title="name"),
            alt.Tooltip("value:Q", title=words, format=".3f"),
            alt.Tooltip("low:Q", title="95% from", format=".3f"),
            alt.Tooltip("high:Q", title="95% to", format=".3f"),
            alt.Tooltip("n:Q", title="prompts"),
        ],
    )
    return coloured.add_params(clicked).properties(height=AROUND + LAYER * frame["layer"].nunique())


def role_grid(frame: pd.DataFrame, roles: Sequence[str]) -> Layers:
    """Layers down, heads across, a colour and a letter for the role of each head."""
    names = [name for name in roles if name in ROLE_COLOURS]
    words = {name: f"{ROLE_LETTERS[name]} {name}" for name in names}
    frame = frame.assign(shown=frame["role"].map(words))
    clicked = alt.selection_point(name=PICK, fields=["layer", "head"], on="click", empty=False)
    base = alt.Chart(frame).encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
        tooltip=[alt.Tooltip("name:N", title="name"), alt.Tooltip("roles:N", title="confirmed roles")],
    )
    scale = alt.Scale(domain=list(words.values()), range=[ROLE_COLOURS[name] for name in names])
    legend = alt.Legend(orient="top", columns=2)  # three are too wide for a phone
    empty = base.mark_rect(cursor="pointer", fillOpacity=0, stroke=NEUTRAL, strokeOpacity=0.35, strokeWidth=0.5)
    cells = base.transform_filter(alt.datum.shown != None).mark_rect(cursor="pointer")  # noqa: E711, Vega compares
    coloured = cells.encode(color=alt.Color("shown:N", title=None, scale=scale, legend=legend))
    ink = alt.condition(alt.datum.role == "previous-token", alt.value("#ffffff"), alt.value("#111111"))
    letters = base.mark_text(fontSize=11, fontWeight=600, cursor="pointer").encode(text=alt.Text("letter:N"), color=ink)
    layers = alt.layer(coloured, empty.add_params(clicked), letters)
    return layers.properties(height=AROUND + LAYER * frame["layer"].nunique())


def cell_grid(frame: pd.DataFrame, marked: str) -> Layers:
    """Prompt lengths across, depths down, accuracy from 0 to 1. The marked cell gets an outline."""
    row = 44 if frame["depth"].nunique() <= 6 else 28
    clicked = alt.selection_point(name=PICK, fields=["cell"], on="click", empty=False)
    base = alt.Chart(frame).encode(
        x=alt.X("length:O", title="prompt length (tokens)", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("depth:O", title="depth (0 = first)", axis=alt.Axis(format=".2~f")),
    )
    colour = alt.Color(
        "accuracy:Q",
        title="accuracy",
        scale=alt.Scale(scheme="viridis", domain=[0, 1]),
        legend=alt.Legend(orient="top", gradientLength=200),
    )
    cells = base.mark_rect(cursor="pointer", stroke=NEUTRAL, strokeOpacity=0.35).encode(
        color=colour,
        tooltip=[
            alt.Tooltip("length:Q", title="length"),
            alt.Tooltip("depth:Q", title="depth"),
            alt.Tooltip("label:N", title="answered"),
            alt.Tooltip("low:Q", title="95% from", format=".2f"),
            alt.Tooltip("high:Q", title="95% to", format=".2f"),
        ],
    )
    layers: list[Any] = [cells.add_params(clicked)]
    if frame["length"].nunique() <= 8:
        # Viridis is light at its upper end and dark below.
        ink = alt.condition(alt.datum.accuracy > 0.6, alt.value("#111111"), alt.value("#ffffff"))
        layers.append(base.mark_text(fontSize=12, cursor="pointer").encode(text=alt.Text("label:N"), color=ink))
    layers.append(
        base.transform_filter(alt.datum.cell == marked).mark_rect(
            fillOpacity=0, stroke=ABLATED, strokeWidth=3, aria=False
        )
    )
    return alt.layer(*layers).properties(height=AROUND + row * frame["depth"].nunique())


def curve(frame: pd.DataFrame, baseline: Mapping[str, float]) -> Layers:
    """Accuracy against the number of heads ablated, the selected ones and random ones; both begin with none."""
    columns = ["k", "accuracy", "low", "high"]
    none = pd.DataFrame([[0, baseline["value"], baseline["low"], baseline["high"]]], columns=columns)
    long = pd.concat(
        part.assign(heads=words)
        for side, words in (("ablated", "top heads off"), ("control", "random heads off"))
        for part in (none, frame[["k", side, f"{side} low", f"{side} high"]].set_axis(columns, axis=1))
    )
    ticks = sorted(int(k) for k in long["k"].unique())
    x = alt.X(
        "k:Q",
        title="heads ablated (K)",
        scale=alt.Scale(type="symlog", constant=1, domain=[0, max(ticks)], nice=False),
        axis=alt.Axis(values=ticks, grid=False, format="d"),
    )
    names = ["top heads off", "random heads off"]
    colour = alt.Color(
        "heads:N",
        title=None,
        scale=alt.Scale(domain=names, range=[ABLATED, CONTROL]),
        legend=alt.Legend(orient="top", symbolOpacity=1, symbolDash=[1, 0]),
    )
    base = alt.Chart(long).encode(x=x, color=colour)
    accuracy = alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))
    tooltip = ["heads:N", "k:Q", *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("accuracy", "low", "high"))]
    band = base.mark_area(opacity=0.22).encode(y=alt.Y("low:Q", title="accuracy"), y2=alt.Y2("high:Q"))
    # One K draws no area: the whisker shows its interval.
    whisker = base.mark_rule(strokeWidth=2, opacity=0.6).encode(y=alt.Y("low:Q", title="accuracy"), y2=alt.Y2("high:Q"))
    line = base.mark_line(strokeWidth=2.5).encode(
        y=accuracy,
        strokeDash=alt.StrokeDash("heads:N", scale=alt.Scale(domain=names, range=[[1, 0], [6, 4]]), legend=None),
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=accuracy, tooltip=tooltip)
    level = pd.DataFrame({"accuracy": [baseline["value"]], "text": [f"baseline {baseline['value']:.2f}"]})
    rule = alt.Chart(level).mark_rule(strokeDash=[2, 3], strokeWidth=2, color=NEUTRAL).encode(y=alt.Y("accuracy:Q"))
    label = (
        alt.Chart(level)
        .mark_text(align="left", baseline="bottom", dx=4, dy=-3, color=NEUTRAL, fontSize=12)
        .encode(y=alt.Y("accuracy:Q"), x=alt.XValue(0), text=alt.Text("text:N"))
    )
    return alt.layer(band, whisker, line, dots, rule, label).properties(height=340)
