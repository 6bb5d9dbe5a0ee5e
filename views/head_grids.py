"""Every head as a square: by one metric, or by how two runs differ. Heads that a filter leaves out are faint."""

from collections.abc import Collection
from typing import Any, Literal

import altair as alt
import pandas as pd

from views import charts
from views.charts import AROUND, LAYER, NEUTRAL, PICK, Layers

FAINT = 0.12
FOCUS = "#d6279a"  # in neither colour scale


def by_metric(table: pd.DataFrame, words: str, *, square_root: bool, kept: Collection[str], focus: str) -> Layers:
    """The grid of charts.head_grid, with the head in focus outlined."""
    grid = charts.head_grid(_marked(table, kept), words, square_root=square_root)
    return _layered([grid], table, focus)


def by_difference(table: pd.DataFrame, *, square_root: bool, kept: Collection[str], focus: str) -> Layers:
    """First run minus second: white is no difference, and the two colours reach equally far. A dot: the interval of the
    difference leaves 0 out. Rows as head_space.differences makes them."""
    far = max(float(table["value"].abs().max()), 1e-9)
    kind: Literal["linear", "symlog"] = "symlog" if square_root else "linear"  # Vega has no root of negative numbers
    bend = far / 20 if square_root else alt.Undefined
    scale = alt.Scale(scheme="blueorange", type=kind, constant=bend, domain=[-far, far], domainMid=0)
    clicked = alt.selection_point(name=PICK, fields=["layer", "head"], on="click", empty=False)
    base = alt.Chart(_marked(table, kept)).encode(**_place())
    cells = base.mark_rect(cursor="pointer", stroke=NEUTRAL, strokeOpacity=0.35, strokeWidth=0.5).encode(
        color=alt.Color(
            "value:Q", title="difference", scale=scale, legend=alt.Legend(orient="top", gradientLength=200)
        ),
        tooltip=[
            alt.Tooltip("name:N", title="name"),
            alt.Tooltip("value:Q", title="difference", format="+.3f"),
            alt.Tooltip("low:Q", title="95% from", format="+.3f"),
            alt.Tooltip("high:Q", title="95% to", format="+.3f"),
            alt.Tooltip("first:Q", title="this run", format=".3f"),
            alt.Tooltip("second:Q", title="the other", format=".3f"),
        ],
    )
    dots = base.transform_filter("datum.apart && datum.kept").mark_point(
        filled=True, size=10, color="#111111", opacity=1, aria=False, cursor="pointer"
    )
    return _layered([cells.add_params(clicked), dots], table, focus)


def _marked(table: pd.DataFrame, kept: Collection[str]) -> pd.DataFrame:
    return table.assign(kept=table["name"].isin(kept))


def _place() -> dict[str, Any]:
    return {
        "x": alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        "y": alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
    }


def _layered(layers: list[Any], table: pd.DataFrame, focus: str) -> Layers:
    """Faint squares for heads left out, and an outline that lets clicks through to the square below it."""
    squares = layers[0].encode(opacity=alt.condition("datum.kept", alt.value(1), alt.value(FAINT)))
    outline = alt.Chart(table[table["name"] == focus]).encode(**_place())
    outline = outline.mark_rect(filled=False, stroke=FOCUS, strokeWidth=3, aria=False)
    return alt.layer(squares, *layers[1:], outline).properties(height=AROUND + LAYER * table["layer"].nunique())
