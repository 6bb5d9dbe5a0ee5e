"""The heads of a layer as small maps."""

from functools import partial
from pathlib import Path

import streamlit as st

from analysis.maps.thumbnails import SIDE, thumbnails
from analysis.runs import Run
from probes.heads import Head
from views import reading
from views.address import show
from views.head_strip import head_strip


def strip(run: Run, head: Head) -> None:
    """Every head of this head's layer; this one is outlined."""
    pictures = _thumbnails(str(run.path), head.layer, reading.stamp(run, "summary.json"))
    head_strip(pictures, head, partial(show, "head"), side=SIDE)


@st.cache_data(show_spinner=False, max_entries=64)
def _thumbnails(path: str, layer: int, stamp: reading.Stamp) -> dict[Head, bytes]:
    return thumbnails(Run(Path(path)), layer)
