"""Charts of estimates: a mean, and around it what it may be. Rows as tables.long_table makes them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import altair as alt
import pandas as pd

# After Okabe and Ito: the common colour blindnesses leave these apart. Measures and dots also differ in dash or shape.
PALETTE = ("#d55e00", "#3d8fc4", "#009e73", "#cc79a7", "#e69f00", "#7a6fd0", "#8c8c8c")
DASHES = ((1, 0), (7, 4), (2, 3), (9, 3, 2, 3), (4, 2), (12, 4))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DIGITS = ",.3~r"
Layers = alt.LayerChart | alt.FacetChart
Kind = Literal["share", "size", "far", "log"]  # from 0 to 1; from 0; where 0 is far from every number; over decades
SCALES: Mapping[Kind, alt.Scale] = {
    "share": alt.Scale(domain=[0, 1]),
    "size": alt.Scale(zero=True),
    "far": alt.Scale(zero=False, padding=12),
    "log": alt.Scale(type="log", nice=False, padding=8),
}


def lines(frame: pd.DataFrame, x: str, title: str, kind: Kind) -> Layers:
    """A line with its band for each measure, over `x`."""
    names = list(dict.fromkeys(frame["measure"]))
    scale = SCALES[kind]
    legend = alt.Legend(orient="top", columns=1, labelLimit=320, symbolOpacity=1, symbolType="stroke")
    base = alt.Chart(frame).encode(
        x=alt.X(f"{x}:Q", title=x, axis=alt.Axis(grid=False, tickMinStep=1), scale=alt.Scale(nice=False)),
        color=alt.Color(
            "measure:N",
            title=None,
            scale=alt.Scale(domain=names, range=PALETTE[: len(names)]),
            legend=None if len(names) == 1 else legend,
        ),
        strokeDash=alt.StrokeDash("measure:N", title=None, scale=alt.Scale(domain=names, range=DASHES[: len(names)])),
    )
    y = alt.Y("value:Q", title=None, scale=scale)
    band = base.mark_area(opacity=0.22, strokeWidth=0).encode(
        y=alt.Y("low:Q", title=None, scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(strokeWidth=2.5).encode(y=y)
    dots = base.mark_point(filled=True, size=30, opacity=1).encode(y=y, tooltip=_tooltip(x, "measure"))
    return alt.layer(band, line, dots).properties(height=360, title=_titled(title))


def dots(frame: pd.DataFrame, row: str, colour: str, title: str, kind: Kind) -> Layers:
    """A dot with its interval in each `row`, side by side where a row has several `colour`s."""
    names = list(dict.fromkeys(frame[colour]))
    rows = list(dict.fromkeys(frame[row]))
    scale = SCALES[kind]
    known = frame.dropna(subset=["low", "high"])
    grouped = frame.groupby(row).size().max() > 1
    colours = alt.Color(
        f"{colour}:N",
        title=None,
        scale=alt.Scale(domain=names, range=_cycle(PALETTE, len(names))),
        legend=alt.Legend(orient="top") if grouped else None,
    )
    shapes = alt.Shape(f"{colour}:N", title=None, scale=alt.Scale(domain=names, range=_cycle(SHAPES, len(names))))
    place = {
        "y": alt.Y(f"{row}:N", title=None, sort=rows, axis=alt.Axis(labelLimit=220, grid=True, tickBand="extent")),
        "color": colours,
    }
    if grouped:
        place["yOffset"] = alt.YOffset(f"{colour}:N", sort=names)
    axis = alt.Axis(tickCount=4) if kind == "log" else alt.Axis()
    rule = alt.Chart(known).mark_rule(strokeWidth=2, opacity=0.7)
    whisker = rule.encode(**place, x=alt.X("low:Q", title=None, scale=scale, axis=axis), x2=alt.X2("high:Q"))
    dot = alt.Chart(frame).mark_point(filled=True, size=70, opacity=1)
    mean = dot.encode(
        **place, shape=shapes, x=alt.X("value:Q", title=None, scale=scale, axis=axis), tooltip=_tooltip(row, colour)
    )
    height = 70 + (38 if grouped else 26) * len(rows)
    return alt.layer(whisker, mean).properties(height=height, title=_titled(title))


def curves(
    frame: pd.DataFrame, value: str, title: str, colours: Mapping[str, str], *, log: bool = False, span: Sequence[float]
) -> alt.Chart:
    """A line for each seed, coloured by rule, over the steps of training; what lies outside `span` is cut off."""
    scale = alt.Scale(type="log" if log else "linear", domain=list(span), nice=False, zero=False)
    names = list(colours)
    chart = alt.Chart(frame).mark_line(strokeWidth=1.8, clip=True)
    return chart.encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, format=",d"), scale=alt.Scale(nice=False)),
        y=alt.Y(f"{value}:Q", title=None, scale=scale, axis=alt.Axis(format=DIGITS)),
        color=alt.Color(
            "rule:N",
            title=None,
            scale=alt.Scale(domain=names, range=list(colours.values())),
            legend=alt.Legend(orient="top", columns=2, symbolType="stroke"),
        ),
        detail=alt.Detail("seed:N"),
        tooltip=["rule:N", "seed:N", alt.Tooltip("step:Q", format=",d"), alt.Tooltip(f"{value}:Q", format=DIGITS)],
    ).properties(height=420, title=_titled(title))


def rule_colours(rules: Sequence[str]) -> dict[str, str]:
    return dict(zip(rules, _cycle(PALETTE, len(rules)), strict=True))


def _cycle(values: Sequence[str], count: int) -> list[str]:
    return [values[i % len(values)] for i in range(count)]


def _titled(title: str) -> alt.TitleParams:
    return alt.TitleParams(title, anchor="start", fontSize=14, fontWeight=600)


def _tooltip(*names: str) -> list[alt.Tooltip | str]:
    numbers = [
        alt.Tooltip(f"{name}:Q", title=words, format=DIGITS)
        for name, words in (("value", "mean"), ("low", "95% from"), ("high", "95% to"))
    ]
    return [*(alt.Tooltip(name) for name in names), *numbers, alt.Tooltip("n:Q", title="prompts")]
