"""A table of a view: on the page for reading, as CSV and parquet for going on."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from views.downloads import as_csv, as_parquet

ROWS = 200  # on the page; the files hold all


@dataclass(frozen=True)
class Table:
    """frame: with its index as columns where the view shows it. words, formats: of its columns, where they have any."""

    name: str
    frame: pd.DataFrame
    alt: str
    words: Mapping[str, str]
    formats: Mapping[str, str]

    def html(self) -> str:
        shown = self.frame.head(ROWS)
        numeric = [is_numeric_dtype(kind) and not is_bool_dtype(kind) for kind in shown.dtypes]
        head = "".join(
            f'<th scope="col"{_side(right)}>{escape(self.words.get(name, name))}</th>'
            for name, right in zip(shown.columns, numeric, strict=True)
        )
        formats = [self.formats.get(name, "") for name in shown.columns]
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td{_side(right)}>{escape(cell_words(value, form))}</td>"
                for value, right, form in zip(row, numeric, formats, strict=True)
            )
            + "</tr>\n"
            for row in shown.itertuples(index=False, name=None)
        )
        data = base64.b64encode(as_csv(self.frame)).decode()
        left = f"The first {ROWS} of {len(self.frame):,} rows; the file holds all. " if len(self.frame) > ROWS else ""
        return (
            f'<div class="table" role="region" tabindex="0" aria-label="{escape(self.alt or "Table")}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
            f'<p class="file">{left}<a download="{self.name}.csv" href="data:text/csv;base64,{data}">'
            f"Save as CSV</a></p>\n"
        )

    def files(self) -> dict[str, bytes]:
        return {f"{self.name}.csv": as_csv(self.frame), f"{self.name}.parquet": as_parquet(self.frame)}


def read_table(name: str, frame: pd.DataFrame, alt: str, columns: str, order: list[str]) -> Table:
    """A table of the dashboard. columns, order: its column configuration, as Streamlit sends it to a browser."""
    settings = json.loads(columns) if columns else {}
    index = settings.get("_index", {})
    if not index.get("hidden") and not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.columns = frame.columns.map(str)
    of = {each: settings.get(each) or settings.get(f"_pos:{at}") or {} for at, each in enumerate(frame.columns)}
    shown = [each for each in (order or frame.columns) if each in of and not of[each].get("hidden")]
    words = {each: of[each]["label"] for each in shown if of[each].get("label")}
    formats = {each: (of[each].get("type_config") or {}).get("format") or "" for each in shown}
    return Table(name, frame[shown], alt, words, formats)


def cell_words(value: Any, form: str = "") -> str:
    """A cell as the dashboard shows it: `form` is "%.3f", "percent" or nothing."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number_words(value, form)
    return str(value)


def _number_words(value: float, form: str) -> str:
    if form == "percent":
        return f"{value:.2%}"
    if form.startswith("%"):
        try:
            return form % value
        except (TypeError, ValueError):
            pass
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) >= 1e-4 or value == 0 else f"{value:.3g}"


def _side(right: bool) -> str:
    return ' class="number"' if right else ""
