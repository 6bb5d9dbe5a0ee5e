"""A chart of a view: drawn on the page by Vega, and as PNG and SVG."""

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import vl_convert

from views.downloads import as_csv, as_parquet

WIDTH = 700  # of a figure that takes the width it gets
BOTTOM = 20  # screen pixels that Streamlit leaves below a chart
COUNTED = re.compile(r'((?:id="|url\(#)(?:gradient_|clip))(\d+)')
LIGHT = {"background": "#ffffff", "ink": "#31333f", "faint": "#e6eaf1"}
DARK = {"background": "#0e1117", "ink": "#fafafa", "faint": "#31333f"}


@dataclass(frozen=True)
class Figure:
    """spec: Vega-Lite with its data inside. frames: the same data as tables."""

    name: str
    spec: Mapping[str, Any]
    frames: tuple[pd.DataFrame, ...]

    def drawn(self) -> dict[str, Any]:
        """For a page: as wide as its place, unless the chart has a width of its own."""
        alone = any(each in self.spec for each in ("facet", "hconcat", "vconcat", "concat", "repeat"))
        return {**self.spec, "width": self.spec.get("width", "container")} if not alone else dict(self.spec)

    def files(self) -> dict[str, bytes]:
        """PNG and SVG as on a light page."""
        spec = {**self.spec, "width": self.spec.get("width", WIDTH)}
        made: dict[str, Any] = {"vl_spec": spec, "config": chart_config(**LIGHT), "allowed_base_urls": []}
        return {
            f"{self.name}.png": vl_convert.vegalite_to_png(**made, scale=2),
            f"{self.name}.svg": _counted_anew(vl_convert.vegalite_to_svg(**made)).encode(),
        }

    def data_files(self) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for number, frame in enumerate(self.frames, 1):
            name = self.name if len(self.frames) == 1 else f"{self.name}-{number}"
            files |= {f"{name}.csv": as_csv(frame), f"{name}.parquet": as_parquet(frame)}
        return files


def read_figure(name: str, proto: Any) -> Figure:
    """proto: a chart as Streamlit sends it to a browser, its data apart as Arrow."""
    spec = json.loads(proto.spec)
    tables = {each.name: _read_arrow(each.data.data) for each in proto.datasets}
    if proto.HasField("data"):
        tables["data"] = _read_arrow(proto.data.data)
        spec.setdefault("data", {"name": "data"})
    spec["datasets"] = spec.get("datasets", {}) | {key: _rows(table) for key, table in tables.items()}
    if proto.alt:
        spec["description"] = proto.alt
    spec["padding"] = {"bottom": BOTTOM} | (spec.get("padding") or {})
    return Figure(name, spec, tuple(frame for table in tables.values() if not (frame := _numbers(table)).empty))


def chart_config(background: str, ink: str, faint: str) -> dict[str, Any]:
    """What Streamlit sets for every chart, so that a saved page looks like the dashboard."""
    words = {"labelColor": ink, "titleColor": ink, "titleFontWeight": 400, "labelFontSize": 12, "titleFontSize": 14}
    lines = {"gridColor": faint, "domain": False, "ticks": False, "labelPadding": 16, "titlePadding": 16}
    return {
        "background": background,
        "font": "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif",
        "title": {"color": ink, "anchor": "start", "fontSize": 16, "fontWeight": 600, "offset": 26},
        "axis": {**words, **lines, "labelFlush": True, "labelLimit": 100, "labelOverlap": True, "labelSeparation": 4},
        "legend": {**words, "labelFontSize": 14, "titlePadding": 8, "padding": 8, "symbolStrokeWidth": 4},
        "header": words,
        "view": {"stroke": "transparent", "continuousHeight": 350, "continuousWidth": 400},
        "text": {"color": ink},
        "axisDiscrete": {"grid": False},
        "axisXBand": {"grid": False},
    }


def _counted_anew(svg: str) -> str:
    """Vega counts gradients and clips over all charts that it ever drew; the same chart is to give the same file."""
    found: dict[str, int] = {}
    return COUNTED.sub(lambda match: f"{match[1]}{found.setdefault(match[2], len(found))}", svg)


def _read_arrow(data: bytes) -> pa.Table:
    table = pa.ipc.open_stream(io.BytesIO(data)).read_all()
    return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, and times as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | list | dict) else str(value)


def _numbers(table: pa.Table) -> pd.DataFrame:
    """Without pictures that a chart carries inside its data."""
    frame = table.to_pandas()
    pictures = [
        name for name in frame.columns
        if len(frame) and isinstance(frame[name].iloc[0], str) and frame[name].iloc[0].startswith("data:")
    ]  # fmt: skip
    return frame.drop(columns=pictures)
