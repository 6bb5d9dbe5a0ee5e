"""The sawtooth (WAAD) and the influence curve (FAI) over the positions of a trace, one above the other.

Two charts, not one of two parts: Streamlit doesn't fit a concatenation of layers to the page (streamlit/streamlit
#13410). The same domain and the same room for the y axis put a position at the same place in both.
"""

from typing import Any

import altair as alt
import pandas as pd

from views import estimates
from views.charts import NEUTRAL, PICK, Layers

NEAR = 15  # tokens around the chosen one at which pairs are numbered: more would overlap on a phone
ROOM = 44  # screen pixels for the labels of a y axis
TITLE = {"waad": "WAAD: the sawtooth", "fai": "FAI: the influence curve"}
SHAPES = {"waad": "triangle-up", "fai": "square"}
# After Okabe and Ito; lines a little lighter than tints where a dark page asks for it.
TINTS = {"waad": (0, 114, 178), "fai": (213, 94, 0), "entropy": (0, 158, 115)}
LINES = {"waad": "#3d8fc4", "fai": "#d55e00"}


def over_positions(frame: pd.DataFrame, name: str, *, chosen: int) -> Layers:
    """A line over the tokens, its peaks marked; a rule at the chosen token, and numbers at the pairs around it.

    frame: position, token, waad, fai, entropy, waad peak, fai peak, pairs. name: which is drawn, waad or fai.
    """
    clicked = alt.selection_point(name=PICK, fields=["position"], on="click", nearest=True, empty=False)
    first, last = int(frame["position"].min()), int(frame["position"].max())
    x = alt.X(
        "position:Q",
        title="position in the sequence (tokens)",
        scale=alt.Scale(domain=[first, max(last, first + 1)], nice=False, zero=False),
        axis=alt.Axis(grid=False, tickMinStep=1, format=",d"),
    )
    base = alt.Chart(frame).encode(
        x=x,
        y=alt.Y(
            f"{name}:Q",
            title=None,
            scale=alt.Scale(zero=name == "fai", padding=6),
            axis=alt.Axis(minExtent=ROOM, maxExtent=ROOM, format=estimates.DIGITS, tickCount=5),
        ),
        tooltip=_tooltip(),
    )
    line = base.mark_line(strokeWidth=1.8, color=LINES[name])
    targets = base.mark_point(filled=True, size=60, opacity=0.01, cursor="pointer").add_params(clicked)
    is_peak = alt.datum[f"{name} peak"]
    peaks = base.transform_filter(is_peak).mark_point(
        shape=SHAPES[name], size=40, filled=True, opacity=1, color=LINES[name], cursor="pointer"
    )
    around = alt.expr.abs(alt.datum.position - chosen) <= NEAR
    written = base.transform_filter(is_peak & (alt.datum.pairs != "") & around)
    numbers = written.mark_text(baseline="bottom", dy=-7, fontSize=10, color=NEUTRAL).encode(text=alt.Text("pairs:N"))
    layers: list[Any] = [_rule(chosen, x), line, peaks, numbers, targets]
    title = alt.TitleParams(TITLE[name], anchor="start", fontSize=14, fontWeight=600)
    return alt.layer(*layers).properties(height=230, title=title)


def _rule(position: int, x: alt.X) -> alt.Chart:
    here = pd.DataFrame({"position": [position]})
    return alt.Chart(here).mark_rule(color=NEUTRAL, strokeWidth=3, opacity=0.8).encode(x=x)


def _tooltip() -> list[alt.Tooltip]:
    numbers = [
        alt.Tooltip(f"{name}:Q", title=words, format=estimates.DIGITS)
        for name, words in (("waad", "WAAD"), ("fai", "FAI"), ("entropy", "entropy (nats)"))
    ]
    return [alt.Tooltip("position:Q", format=",d"), alt.Tooltip("token:N"), *numbers]
