"""A window of a map as a picture with positions at its sides, and parts of it that can be pointed at and chosen."""

import base64
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd
from xarray import DataArray

from analysis.maps.drawing import VIRIDIS, Scale, blocks, pixels
from analysis.maps.windows import Window
from views.charts import PICK, Layers

SIDE = 470  # screen pixels
CHOSEN = "#d55e00"
SHORT = 30  # characters of a token that a tooltip has room for


def map_chart(cells: DataArray, window: Window, scale: Scale, texts: Sequence[str], pair: tuple[int, int]) -> Layers:
    """Queries down, keys across. A click gives the tokens of the strongest cell of the part that is hit.

    pair: the chosen query and key, marked by lines where they are in the window.
    """
    url = "data:image/png;base64," + base64.b64encode(pixels(cells, scale)).decode()
    picture = alt.Chart(pd.DataFrame({"url": [url]})).mark_image(
        width=alt.expr("width"), height=alt.expr("height"), aspect=False, align="left", baseline="top", smooth=False,
        aria=False,
    )  # fmt: skip
    layers: list[Any] = [picture.encode(alt.XValue(0), alt.YValue(0), alt.Url("url:N"))]
    layers += [_line(name, pair[at], window) for at, name in enumerate(("query", "key"))]
    layers.append(_parts(cells, window, texts))
    return alt.layer(*layers).properties(height=SIDE)


def colour_bar_html(span: tuple[float, float], scale: Scale) -> str:
    """What the colours mean. span: the weights of the darkest and the lightest."""
    bar = f"height:12px;border:1px solid #888888;background:linear-gradient(90deg,{','.join(VIRIDIS)})"
    low, high = span
    words = (
        (f"{low:.0e} or less", "weight, logarithmic", f"{high:g}") if scale == "log" else ("0", "weight", f"{high:.4g}")
    )
    ends = "".join(f"<span>{each}</span>" for each in words)
    return (
        f'<div style="font-size:.85em"><div style="{bar}"></div>'
        f'<div style="display:flex;justify-content:space-between;gap:.6em">{ends}</div></div>'
    )


def _parts(cells: DataArray, window: Window, texts: Sequence[str]) -> alt.Chart:
    frame = blocks(cells)
    for name in ("query", "key"):
        starts, stops = frame[f"from_{name}"], frame[f"to_{name}"]
        frame[name] = [_tokens(start, stop, texts) for start, stop in zip(starts, stops, strict=True)]
    fields = ["from_query", "to_query", "from_key", "to_key"]
    clicked = alt.selection_point(name=PICK, fields=fields, on="click", empty=False)
    marks = alt.Chart(frame).mark_rect(cursor="pointer", fillOpacity=0, strokeOpacity=0)
    return marks.encode(
        x=_axis("key", window.keys), x2=alt.X2("key_stop"), y=_axis("query", window.queries), y2=alt.Y2("query_stop"),
        tooltip=[
            alt.Tooltip("query:N"),
            alt.Tooltip("key:N"),
            alt.Tooltip("weight:Q", title="weight", format=".4g"),
        ],
    ).add_params(clicked)  # fmt: skip


def _line(name: str, position: int, window: Window) -> alt.Chart:
    side = window.queries if name == "query" else window.keys
    inside = side[0] <= position < side[1]
    frame = pd.DataFrame({f"{name}_start": [position + 0.5] if inside else []}, dtype=float)
    place = {"y" if name == "query" else "x": _axis(name, side)}
    return alt.Chart(frame).mark_rule(color=CHOSEN, strokeDash=[3, 3], aria=False).encode(**place)


def _axis(name: str, side: tuple[int, int]) -> Any:
    down = name == "query"
    axis = alt.Axis(format="d", tickMinStep=1, grid=False, tickCount=6, orient="left" if down else "top")
    # Not a domain from the last to the first: Vega 6.2 finds no ticks in one (its length is below tickMinStep).
    scale = alt.Scale(domain=list(side), reverse=down, nice=False, zero=False)
    return (alt.Y if down else alt.X)(f"{name}_start:Q", title=f"{name}, position", axis=axis, scale=scale)


def _tokens(start: int, stop: int, texts: Sequence[str]) -> str:
    """A token with its position, or the stretch that a cell covers."""
    if stop - start == 1:
        return f"{start} {texts[start]!r}"[:SHORT]
    return f"{start} to {stop - 1}"
