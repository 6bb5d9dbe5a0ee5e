"""A picture with what a head attends to laid over it, and the boxes of its objects."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from analysis.vision.overlay import FAINTEST, PLASMA, STRONGEST
from views.charts import Layers

SIDE = 320  # screen pixels of the longer side: a phone's page is 350 wide
MARGIN = 20  # screen pixels that Streamlit takes off a chart's height
BOX, CHOSEN = "#ffffff", "#d55e00"  # every box is drawn over a dark line, to be seen on any picture


def picture_chart(
    picture: NDArray[np.uint8],
    patches: NDArray[np.float32],
    attention: NDArray[np.float64] | None,
    objects: Sequence[Mapping[str, Any]],
    *,
    named: str = "",
    strongest: float = STRONGEST,
    names: Sequence[str] | None = None,
    marked: Sequence[int] = (),
) -> Layers:
    """The picture, patches coloured by their attention, if any, and boxes: one colour for the object `named`.

    picture: (height, width, 3). patches: (image, 4), fractions; rows of NaN are left out. attention: (image,).
    objects: name and box, each with left, top, right, bottom as fractions. strongest: opacity of the patch of most
    attention. names: of the patches, to be pointed at. marked: patches with a sign in their middle.
    """
    height, width = picture.shape[:2]
    across, down = (round(SIDE * side / max(height, width)) for side in (width, height))
    pixels = alt.Chart(pd.DataFrame({"url": [_data_url(picture)]})).mark_image(
        # Not `across` and `down`: Streamlit takes a margin off the chart's sides.
        width=alt.expr("width"),
        height=alt.expr("height"),
        aspect=False,
        align="left",
        baseline="top",
    )
    layers: list[Any] = [pixels.encode(alt.XValue(0), alt.YValue(0), alt.Url("url:N"))]
    if attention is not None:
        layers.append(_heat(patches, attention, strongest, names))
    if objects:
        layers += _boxes(objects, named)
    if marked:
        layers += _signs(patches, marked)
    return alt.layer(*layers).resolve_scale(color="independent").properties(width=across, height=down + MARGIN)


def colour_bar_html(most: float) -> str:
    """What the colours of the patches mean, from 0 to `most`."""
    bar = f"height:12px;border:1px solid #888888;background:linear-gradient(90deg,{','.join(PLASMA)})"
    ends = f"<span>0</span><span>attention on a patch</span><span>{most:.2%}</span>"
    return (
        f'<div style="max-width:{SIDE}px;font-size:.85em"><div style="{bar}"></div>'
        f'<div style="display:flex;justify-content:space-between">{ends}</div></div>'
    )


def _heat(
    patches: NDArray[np.float32], attention: NDArray[np.float64], strongest: float, names: Sequence[str] | None
) -> alt.Chart:
    frame = pd.DataFrame(np.asarray(patches, dtype=float), columns=["left", "top", "right", "bottom"])
    tooltip = [alt.Tooltip("attention:Q", format=".4f" if names is None else ".6f")]
    if names is not None:
        frame["patch"], tooltip = list(names), [alt.Tooltip("patch:N"), *tooltip]
    frame = frame.assign(attention=attention).dropna()
    top = max(float(frame["attention"].max()), 1e-9)
    scale = alt.Scale(range=list(PLASMA), domain=[0, top], interpolate="rgb")
    marks = alt.Chart(frame).mark_rect(strokeWidth=0)
    faintest_to = [min(FAINTEST, strongest), strongest]
    return marks.encode(
        **_corners(),
        color=alt.Color("attention:Q", scale=scale, legend=None),
        opacity=alt.Opacity("attention:Q", scale=alt.Scale(domain=[0, top], range=faintest_to), legend=None),
        tooltip=tooltip,
    )


def _boxes(objects: Sequence[Mapping[str, Any]], named: str) -> list[alt.Chart]:
    frame = pd.DataFrame([[each["name"], *each["box"]] for each in objects])
    frame = frame.set_axis(["name", "left", "top", "right", "bottom"], axis=1)
    frame["low"] = np.where(frame["top"] < 0.08, frame["bottom"], frame["top"])  # a name above the edge would be cut
    frame["is named"] = frame["name"] == named  # not filled: inside a box it is the patch that is pointed at
    base = alt.Chart(frame)
    colour = alt.condition(alt.datum["is named"], alt.value(CHOSEN), alt.value(BOX))
    dark = base.mark_rect(filled=False, stroke="#111111", strokeWidth=4, strokeOpacity=0.8).encode(**_corners())
    line = base.mark_rect(filled=False, strokeWidth=2).encode(
        **_corners(), stroke=colour, tooltip=[alt.Tooltip("name:N", title="object")]
    )
    return [dark, line, *_names(frame[frame["left"] <= 0.5], "left"), *_names(frame[frame["left"] > 0.5], "right")]


def _names(frame: pd.DataFrame, side: Literal["left", "right"]) -> list[alt.Chart]:
    """At that side of each box, so that a name ends inside the picture: one beyond it would squeeze the chart."""
    written: dict[str, Any] = {
        "align": side, "baseline": "bottom", "dx": 1 if side == "left" else -1, "dy": -2, "fontSize": 13,
        "fontWeight": 600,
    }  # fmt: skip
    base = alt.Chart(frame).encode(x=_axis(side), y=_axis("low"), text=alt.Text("name:N"))
    shadow = base.mark_text(**written, stroke="#111111", strokeWidth=3, strokeJoin="round")
    return [shadow, base.mark_text(**written, color=BOX)]


def _signs(patches: NDArray[np.float32], marked: Sequence[int]) -> list[alt.Chart]:
    """A cross in the middle of each, white over dark."""
    left, top, right, bottom = np.asarray(patches, dtype=float)[list(marked)].T
    frame = pd.DataFrame({"left": (left + right) / 2, "top": (top + bottom) / 2}).dropna()
    base = alt.Chart(frame).encode(x=_axis("left"), y=_axis("top"))
    sizes: Any = {"shape": "cross", "angle": 45, "size": 140, "opacity": 1}
    return [
        base.mark_point(**sizes, stroke="#111111", strokeWidth=4),
        base.mark_point(**sizes, stroke=BOX, strokeWidth=2),
    ]


def _corners() -> dict[str, Any]:
    return {"x": _axis("left"), "x2": alt.X2("right"), "y": _axis("top"), "y2": alt.Y2("bottom")}


def _axis(name: str) -> Any:
    across = name in ("left", "right")
    kind = alt.X if across else alt.Y
    scale = alt.Scale(domain=[0, 1] if across else [1, 0], nice=False)
    return kind(f"{name}:Q", axis=None, scale=scale)


def _data_url(picture: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
