"""The charts of a result: a verdict for each task and point, and the estimates behind one task's."""

from typing import Any

import altair as alt
import pandas as pd

from analysis.bench.verdicts import BETTER, HELD, WORSE
from views.charts import ABLATED, AROUND, CONTROL, NEUTRAL, PICK, Layers
from views.estimates import DIGITS

COLOURS = {WORSE: ABLATED, BETTER: "#56b4e9", HELD: "#c9c9c9"}
INK = "#111111"  # on all three
ROW = 66  # pixels of a point
WIDE: Any = {"expr": "bandwidth('x') < 116 ? 0 : 1"}  # the opacity of words in cells that hold them
NARROW: Any = {"expr": "bandwidth('x') < 116 ? 1 : 0"}
MEASURES = {  # the colour and the shape of each
    "baseline": ("#8c8c8c", "circle"),
    "intervention": (ABLATED, "square"),
    "random heads": (CONTROL, "triangle-up"),
    "minus baseline": (ABLATED, "circle"),
    "minus random heads": (CONTROL, "square"),
}


def verdict_grid(frame: pd.DataFrame, marked: tuple[str, str]) -> Layers:
    """Tasks and points, the more numerous down; in each cell the number before and after, and the verdict.

    Cells too narrow for words, as on a phone, show the number after, its sign and the colour alone.
    frame: as tables.verdict_table makes it. marked: the task and the point whose cell is outlined.
    """
    sizes = {name: frame[name].nunique() for name in ("shown", "task")}
    down, across = sorted(sizes, key=sizes.__getitem__, reverse=True)
    clicked = alt.selection_point(name=PICK, fields=["task", "point"], on="click", empty=False)
    fits: Any = {"expr": "bandwidth('x') - 8"}
    place: dict[str, Any] = {
        "x": alt.X(
            f"{across}:N",
            title=None,
            sort=_order(frame, across),
            axis=alt.Axis(orient="top", labelAngle=0, labelLimit=fits, labelOverlap=False, labelFlush=False),
        ),
        "y": alt.Y(f"{down}:N", title=None, sort=_order(frame, down), axis=alt.Axis(labelLimit=130)),
    }
    base = alt.Chart(frame).encode(**place)
    colour = alt.Color(
        "verdict:N",
        title=None,
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
        legend=alt.Legend(orient="bottom", columns=2),  # three are too wide for a phone
    )
    cells = base.mark_rect(cursor="pointer", cornerRadius=3, stroke="#ffffff", strokeWidth=2).encode(
        color=colour,
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("shown:N", title="point"),
            alt.Tooltip("metric:N"),
            alt.Tooltip("baseline:Q", format=DIGITS),
            alt.Tooltip("treated:Q", title="intervention", format=DIGITS),
            alt.Tooltip("verdict:N"),
            alt.Tooltip("beyond:N", title="random heads"),
            alt.Tooltip("n:Q", title="examples"),
        ],
    )
    layers = [cells.add_params(clicked)]
    for column, dy, size, opacity in (
        ("numbers", -17, 14, WIDE),
        ("verdict", 1, 11, WIDE),
        ("beyond", 16, 11, WIDE),
        ("short", 0, 12, NARROW),
    ):
        words = base.mark_text(color=INK, dy=dy, fontSize=size, opacity=opacity, cursor="pointer", aria=False)
        layers.append(words.encode(text=f"{column}:N"))
    chosen = frame[(frame["task"] == marked[0]) & (frame["point"] == marked[1])]
    layers.append(
        alt.Chart(chosen).mark_rect(filled=False, stroke="#d6279a", strokeWidth=3, aria=False).encode(**place)
    )
    return alt.layer(*layers).properties(height=AROUND - 45 + ROW * sizes[down])


def intervals(frame: pd.DataFrame, title: str, scale: alt.Scale) -> Layers:
    """A dot with its interval for each point and measure; with a line at 0 where 0 is on the scale.

    frame: point, measure, value, low, high; as tables.condition_table and difference_table make it.
    """
    points, measures = (_order(frame, name) for name in ("point", "measure"))
    colours = alt.Scale(domain=list(MEASURES), range=[colour for colour, _ in MEASURES.values()])
    shapes = alt.Scale(domain=list(MEASURES), range=[shape for _, shape in MEASURES.values()])
    legend = alt.Legend(orient="top", columns=2, values=measures)
    place = {
        "y": alt.Y("point:N", title=None, sort=points, axis=alt.Axis(labelLimit=130)),
        "yOffset": alt.YOffset("measure:N", sort=measures),
        "color": alt.Color("measure:N", title=None, scale=colours, legend=legend),
    }
    known = alt.Chart(frame.dropna(subset=["low", "high"]))
    whisker = known.mark_rule(strokeWidth=2, opacity=0.8).encode(
        **place, x=alt.X("low:Q", title=None, scale=scale), x2=alt.X2("high:Q")
    )
    numbers = [
        alt.Tooltip(f"{name}:Q", title=words, format=DIGITS)
        for name, words in (("value", "mean"), ("low", "95% from"), ("high", "95% to"))
    ]
    dot = (
        alt.Chart(frame)
        .mark_point(filled=True, size=80, opacity=1)
        .encode(
            **place,
            shape=alt.Shape("measure:N", title=None, scale=shapes, legend=legend),
            x=alt.X("value:Q", title=None, scale=scale),
            tooltip=["point:N", "measure:N", *numbers],
        )
    )
    layers = [whisker, dot]
    if scale.zero is True:
        none = (
            alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color=NEUTRAL, strokeDash=[3, 3]).encode(x=alt.X("zero:Q"))
        )
        layers.insert(0, none)
    headed = alt.TitleParams(title, anchor="start", fontSize=14, fontWeight=600)
    return alt.layer(*layers).properties(title=headed, height=AROUND + ROW * len(points))


def _order(frame: pd.DataFrame, name: str) -> list[str]:
    return list(dict.fromkeys(frame[name]))
