"""The worker of the jobs: whether it lives, which model it keeps in memory, and what that leaves of the machine."""

import time

import streamlit as st

from analysis.jobs.lock import held, jobs_folder
from analysis.jobs.memory import ask_to_unload, in_memory
from analysis.jobs.serving import ensure_worker
from analysis.jobs.showing import duration
from probes.memory import host_bytes
from probes.sources import SHORT_NAMES, llavas
from views import next_steps, reading
from views.job_card import show_refusal, submit_line
from views.run_words import plain

CHOSEN_FOR_YOU = "as it fits"  # no --device, no --dtype
DTYPES = (CHOSEN_FOR_YOU, "float32", "bfloat16", "float16")
DEVICES = (CHOSEN_FOR_YOU, "cpu", "cuda")


def draw_worker(*, working: bool) -> None:
    """working: whether a job is at work, which needs the model."""
    folder = jobs_folder(reading.runs_folder())
    lives = held(folder)
    left, middle, right = st.columns(3)
    with left, st.container(border=True):
        st.markdown("**Worker**")
        if lives:
            st.markdown("At work." if working else "Waiting for work; it ends after 15 minutes without any.")
        else:
            st.markdown("None. The next job starts one.")
            if st.button("Start the worker", icon=":material/play_arrow:"):
                ensure_worker(reading.runs_folder())
                st.markdown("One starts.")
    with middle, st.container(border=True):
        st.markdown("**Model in memory**")
        kept = in_memory(folder)
        if kept is None:
            st.markdown("None.")
        else:
            st.markdown(
                f"{plain(kept.model)} · {plain(kept.dtype)} on {plain(kept.device)} · {kept.bytes / 1e9:.2f} GB · for "
                f"{duration(max(time.time() - kept.since, 0.0))}"
            )
            if st.button("Unload", icon=":material/eject:", help="The worker lets it go as soon as no job needs it."):
                ask_to_unload(folder)
                st.markdown("It goes as soon as no job needs it.")
    with right, st.container(border=True):
        free, whole = host_bytes()
        st.markdown("**Memory of this machine**")
        used = max(whole - free, 0)
        st.progress(min(used / max(whole, 1), 1.0), text=f"{used / 1e9:.1f} of {whole / 1e9:.1f} GB in use")


def load_form() -> None:
    """Load a model before anything is asked about it."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.selectbox(
            "Model", _known_models(), accept_new_options=True, key="load-model", width=340,
            help="One of those of the runs, or type a short name, a folder, a .gguf file or a hub id.",
        )  # fmt: skip
        st.selectbox("Device", DEVICES, accept_new_options=True, key="load-device", width=140)
        st.selectbox("Precision", DTYPES, key="load-dtype", width=140)
        st.button("Load", icon=":material/download:", on_click=_submit_load)
    show_refusal("load")


def _submit_load() -> None:
    model, device, dtype = (st.session_state[f"load-{name}"] for name in ("model", "device", "dtype"))
    line = ["load", *([model] if model else [])]
    line += [] if device in (None, CHOSEN_FOR_YOU) else ["--device", device]
    line += [] if dtype == CHOSEN_FOR_YOU else ["--dtype", dtype]
    submit_line(line, "load")


def _known_models() -> list[str]:
    asked = [next_steps.asked_model(run) for run in reading.runs()[0] if "name" in (run.manifest.get("model") or {})]
    return list(dict.fromkeys([*asked, *SHORT_NAMES, *llavas()]))
