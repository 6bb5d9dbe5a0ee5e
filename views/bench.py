"""Bench: change heads, ask the model again, and read what follows beside as many random heads changed alike."""

import streamlit as st

from views import bench_form, bench_result, reading
from views.address import chosen_run
from views.pages import Page
from views.run_words import plain

JUDGED = ("intervene", "sweep", "evict", "stream")  # the commands whose runs hold tasks and points
PAGE = Page("Bench", ":material/tune:", "Change", 10, opens=JUDGED)
FORM = "form"  # in the URL while the form stands in the place of a result


def page() -> None:
    st.title("Bench")
    st.caption("Change heads, ask the model again, and see what follows, beside as many random heads changed alike.")
    run = chosen_run()
    judged = reading.command(run) in JUDGED
    if judged and FORM not in st.query_params and "change" not in st.query_params:
        bench_result.section(run, change=_show_form)
        return
    st.caption(f"Model {plain(reading.model_name(run))}, of the run {plain(run.id)}.")
    if judged:
        st.button("Back to the result", icon=":material/arrow_back:", on_click=_show_result)
    bench_form.section(run)


def _show_form() -> None:
    st.query_params[FORM] = "1"


def _show_result() -> None:
    for name in (FORM, "change"):
        st.query_params.pop(name, None)


if __name__ == "__main__":
    page()
