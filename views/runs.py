"""Runs: what has been asked of which model, and where to look at the answers."""

import json

import streamlit as st

from analysis.runs import Run
from views import reading, tables
from views.address import change_run, chosen_run, nothing_yet
from views.pages import Page, pages_of
from views.run_words import plain, run_words
from views.unseen import seen

PAGE = Page("Runs", ":material/list:", "", 20)


def page() -> None:
    st.title("Runs")
    st.caption("Every run in the folder, newest first. Choose one in the sidebar or by its row, then open its pages.")
    found, problems = reading.runs()
    for sentence in problems:
        st.warning(plain(sentence))
    if not found:
        nothing_yet()
    table = tables.runs_table(found)
    st.dataframe(
        table,
        hide_index=True,
        key="runs-table",
        on_select=_follow_row,
        selection_mode="single-row",
        alt=f"Table of {len(table)} runs: id, command, model, state, cases, created, seconds",
        column_config={"seconds": st.column_config.NumberColumn("seconds", format="%.1f")},
    )
    run = chosen_run(*{reading.command(run) for run in found})
    _about(run)


def _follow_row() -> None:
    rows = st.session_state["runs-table"]["selection"]["rows"]
    found, _ = reading.runs()
    if rows and rows[0] < len(found):
        change_run(found[rows[0]].id)


def _about(run: Run) -> None:
    st.subheader(plain(run_words(run)))
    pages = pages_of(reading.command(run))
    with st.container(horizontal=True):
        for path, words in pages:
            st.page_link(path, label=f"Open {words}", query_params={"run": run.id})
    manifest = run.manifest
    st.caption("The command that made it")
    st.code(seen(str(manifest.get("argv", "not recorded"))), language=None, wrap_lines=True)
    with st.expander("Request, model, versions and machine"):
        facts = {name: manifest.get(name) for name in ("request", "model", "versions", "machine", "peak_memory_bytes")}
        st.code(seen(json.dumps(facts, indent=1, ensure_ascii=False)), language="json", wrap_lines=True)


if __name__ == "__main__":
    page()
