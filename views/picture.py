"""A picture with what a head attends to laid over it, and the boxes of its objects."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from views.charts import Layers

SIDE = 320  # screen pixels of the longer side: a phone's page is 350 wide
MARGIN = 20  # screen pixels that Streamlit takes off a chart's height
FAINTEST, STRONGEST = 0.12, 0.8  # opacity of the patches of least and most attention
COLOURS = ("#0d0887", "#7e03a8", "#cc4778", "#f89540", "#f0f921")  # plasma: light means more, in grey too
BOX, CHOSEN = "#ffffff", "#d55e00"  # every box is drawn over a dark line, to be seen on any picture


def picture_chart(
    picture: NDArray[np.uint8],
    patches: NDArray[np.float32],
    attention: NDArray[np.float64] | None,
    objects: Sequence[Mapping[str, Any]],
    *,
    named: str = "",
) -> Layers:
    """The picture, patches coloured by their attention, if any, and boxes: one colour for the object `named`.

    picture: (height, width, 3). patches: (image, 4), fractions; rows of NaN are left out. attention: (image,).
    objects: name and box, each with left, top, right, bottom as fractions.
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
    layers: list[Any] = [pixels.encode(x=alt.value(0), y=alt.value(0), url="url:N")]
    if attention is not None:
        layers.append(_heat(patches, attention))
    if objects:
        layers += _boxes(objects, named)
    return alt.layer(*layers).resolve_scale(color="independent").properties(width=across, height=down + MARGIN)


def colour_bar_html(most: float) -> str:
    """What the colours of the patches mean, from 0 to `most`."""
    bar = f"height:12px;border:1px solid #888888;background:linear-gradient(90deg,{','.join(COLOURS)})"
    ends = f"<span>0</span><span>attention on a patch</span><span>{most:.2%}</span>"
    return (
        f'<div style="max-width:{SIDE}px;font-size:.85em"><div style="{bar}"></div>'
        f'<div style="display:flex;justify-content:space-between">{ends}</div></div>'
    )


def _heat(patches: NDArray[np.float32], attention: NDArray[np.float64]) -> alt.Chart:
    frame = pd.DataFrame(np.asarray(patches, dtype=float), columns=["left", "top", "right", "bottom"])
    frame = frame.assign(attention=attention).dropna()
    top = max(float(frame["attention"].max()), 1e-9)
    scale = alt.Scale(range=list(COLOURS), domain=[0, top], interpolate="rgb")
    marks = alt.Chart(frame).mark_rect(strokeWidth=0)
    return marks.encode(
        **_corners(),
        color=alt.Color("attention:Q", scale=scale, legend=None),
        opacity=alt.Opacity("attention:Q", scale=alt.Scale(domain=[0, top], range=[FAINTEST, STRONGEST]), legend=None),
        tooltip=[alt.Tooltip("attention:Q", format=".4f")],
    )


def _boxes(objects: Sequence[Mapping[str, Any]], named: str) -> list[alt.Chart]:
    frame = pd.DataFrame([[each["name"], *each["box"]] for each in objects])
    frame = frame.set_axis(["name", "left", "top", "right", "bottom"], axis=1)
    frame["low"] = np.where(frame["top"] < 0.08, frame["bottom"], frame["top"])  # a name above the edge would be cut
    frame["is named"] = frame["name"] == named
    base = alt.Chart(frame)
    colour = alt.condition(alt.datum["is named"], alt.value(CHOSEN), alt.value(BOX))
    dark = base.mark_rect(fillOpacity=0, stroke="#111111", strokeWidth=4, strokeOpacity=0.8).encode(**_corners())
    line = base.mark_rect(fillOpacity=0, strokeWidth=2).encode(
        **_corners(), stroke=colour, tooltip=[alt.Tooltip("name:N", title="object")]
    )
    written: dict[str, Any] = {
        "align": "left",
        "baseline": "bottom",
        "dx": 1,
        "dy": -2,
        "fontSize": 13,
        "fontWeight": 600,
    }
    place = {"x": _axis("left"), "y": _axis("low"), "text": "name:N"}
    shadow = base.mark_text(**written, stroke="#111111", strokeWidth=3, strokeJoin="round").encode(**place)
    words = base.mark_text(**written, color=BOX).encode(**place)
    return [dark, line, shadow, words]


def _corners() -> dict[str, Any]:
    return {"x": _axis("left"), "x2": "right", "y": _axis("top"), "y2": "bottom"}


def _axis(name: str) -> Any:
    kind = alt.X if name == "left" else alt.Y
    scale = alt.Scale(domain=[0, 1] if name == "left" else [1, 0], nice=False)
    return kind(f"{name}:Q", axis=None, scale=scale)


def _data_url(picture: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
