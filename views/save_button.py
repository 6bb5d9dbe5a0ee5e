"""The button of the sidebar that saves what is on screen as a file."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore

import streamlit as st

from probes.errors import HeadscopeError
from views import reading
from views.saving.view import FIRST, View

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "html": ("This page", "text/html", ":material/description:"),
    "zip": ("With figures and tables", "application/zip", ":material/folder_zip:"),
}
AT_ONCE = BoundedSemaphore(2)  # each starts a dashboard of its own, for seconds and half a gigabyte


def save_button(page: str) -> None:
    """page: the one on screen, as its address has it. Made after the page, when the URL holds all of its choices."""
    view = View(page or FIRST, st.query_params.to_dict())
    with st.sidebar.popover("Save this view", icon=":material/save:", width="stretch"):
        st.caption("A page that opens offline, or a zip with PNG, SVG, CSV and parquet. It takes a few seconds.")
        for suffix, (words, kind, icon) in FILES.items():
            st.download_button(
                words, partial(saved, view.address, suffix), f"headscope-{view.page}.{suffix}", kind, icon=icon,
                on_click="ignore", width="stretch",
            )  # fmt: skip


def saved(address: str, suffix: str) -> bytes:
    """Made by a process of its own (views/saving/replay.py says why). Raises HeadscopeError with its sentence."""
    environment = {**os.environ, "HEADSCOPE_RUNS": str(reading.runs_folder().resolve())}
    with AT_ONCE, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"view.{suffix}"
        done = subprocess.run(
            [sys.executable, "-m", "views.saving", "--to", str(file), "--", address],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise HeadscopeError(done.stderr.strip().removeprefix("headscope: ") or "The view could not be saved.")
        return file.read_bytes()
