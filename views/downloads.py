"""The numbers of a view as files: CSV for reading, parquet with their types and every digit for going on."""

import io
from collections.abc import Callable
from functools import partial

import pandas as pd
import streamlit as st
from pandas.api.types import infer_dtype


def data_buttons(frame: pd.DataFrame | Callable[[], pd.DataFrame], name: str, *, of: str = "") -> None:
    """Two buttons that download `frame` as `name`.csv and `name`.parquet; the files are made when they are asked for.

    of: what it holds, where a page has several: "the curves".
    """

    def written(write: Callable[[pd.DataFrame], bytes]) -> bytes:
        return write(frame() if callable(frame) else frame)

    csv = f"Download {of} as CSV" if of else "Download as CSV"
    parquet = "application/vnd.apache.parquet"
    with st.container(horizontal=True, width="content"):
        st.download_button(
            csv, partial(written, as_csv), f"{name}.csv", "text/csv", key=f"{name}.csv", on_click="ignore",
            icon=":material/table:",
        )  # fmt: skip
        st.download_button(
            "Parquet", partial(written, as_parquet), f"{name}.parquet", parquet, key=f"{name}.parquet",
            on_click="ignore", help="The same numbers with their types and every digit, for pandas and others.",
        )  # fmt: skip


def as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def as_parquet(frame: pd.DataFrame) -> bytes:
    """A column that mixes numbers and words, as tables for reading may, becomes one of words."""
    mixed = [name for name in frame.columns if infer_dtype(frame[name]) in ("mixed", "mixed-integer")]
    file = io.BytesIO()
    frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in mixed}).to_parquet(file, index=False)
    return file.getvalue()
