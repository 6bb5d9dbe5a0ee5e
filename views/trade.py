"""The chart of what a mitigation gives and takes: invented objects against objects found."""

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import pandas as pd

from views.charts import NEUTRAL, Layers
from views.estimates import DIGITS, PALETTE, SHAPES

MARGIN = 0.03  # free space beyond the intervals
COLUMNS = 2
PLOT, ROW = 420, 30  # pixels of the chart's height, and of a row of its legend


def trade_chart(frame: pd.DataFrame) -> Layers:
    """A point for each arm with both intervals; the untreated one is ringed, and lines go through it.

    frame: arm, kind (untreated, mitigation, random heads), chair_i and recall, each with low and high, n.
    """
    arms = list(frame["arm"])
    legend = alt.Legend(orient="bottom", columns=COLUMNS, labelLimit=150, symbolOpacity=1)
    base = alt.Chart(frame).encode(
        color=alt.Color("arm:N", title=None, sort=arms, scale=_scale(arms, PALETTE), legend=legend),
    )
    right: dict[str, Any] = {
        "title": "recall: objects found",
        "scale": _span(frame, "recall"),
        "axis": alt.Axis(tickCount=6),
    }
    down: dict[str, Any] = {
        "title": "CHAIR_i: objects invented (root scale)",
        "scale": _span(frame, "chair_i", type="sqrt"),  # most arms crowd near the bottom
        "axis": alt.Axis(tickCount=6),
    }
    x, y = alt.X("recall:Q", **right), alt.Y("chair_i:Q", **down)
    whisker = base.mark_rule(opacity=0.6, strokeWidth=1.5)
    across = whisker.encode(x=alt.X("recall low:Q", **right), x2=alt.X2("recall high:Q"), y=y)
    up = whisker.encode(x=x, y=alt.Y("chair_i low:Q", **down), y2=alt.Y2("chair_i high:Q"))
    untreated = alt.Chart(frame).transform_filter(alt.datum.kind == "untreated")
    level = untreated.mark_rule(strokeDash=[2, 3], color=NEUTRAL).encode(y=y)
    upright = untreated.mark_rule(strokeDash=[2, 3], color=NEUTRAL).encode(x=x)
    tooltip = ["arm:N", "kind:N"] + [
        alt.Tooltip(f"{name}{end}:Q", title=f"{words}{end}", format=DIGITS)
        for name, words in (("chair_i", "CHAIR_i"), ("recall", "recall"))
        for end in ("", " low", " high")
    ]
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x,
        y=y,
        shape=alt.Shape("arm:N", title=None, sort=arms, scale=_scale(arms, SHAPES), legend=legend),
        tooltip=[*tooltip, alt.Tooltip("n:Q", title="pictures")],
    )
    ring = untreated.mark_point(filled=False, size=320, strokeWidth=2, color=NEUTRAL, shape="circle").encode(x=x, y=y)
    return alt.layer(level, upright, across, up, points, ring).properties(height=PLOT + ROW * -(-len(arms) // COLUMNS))


def _span(frame: pd.DataFrame, name: str, *, type: Literal["linear", "sqrt"] = "linear") -> alt.Scale:
    low, high = frame[f"{name} low"].min() - MARGIN, frame[f"{name} high"].max() + MARGIN
    return alt.Scale(type=type, domain=[max(float(low), 0.0), min(float(high), 1.0)], nice=False)


def _scale(arms: Sequence[str], values: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(arms), range=[values[at % len(values)] for at in range(len(arms))])
