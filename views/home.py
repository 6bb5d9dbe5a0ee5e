"""Home: the models that have been looked at, what the newest runs answer, and what can be asked next."""

import shlex
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from analysis.jobs.folder import jobs
from analysis.jobs.job import WORKING
from analysis.runs import Run
from views import next_steps, reading, run_answers
from views.address import nothing_yet, pick
from views.job_card import submit_button
from views.pages import Page, pages_of
from views.run_words import plain, run_words

PAGE = Page("Home", ":material/home:", "", 10)

NEWEST = 6


def page() -> None:
    st.title("headscope")
    st.caption("See what every attention head of a model looks at, measure it, change it, and see what follows.")
    found, problems = reading.runs()
    for sentence in problems:
        st.warning(plain(sentence))
    if not found:
        nothing_yet()
    _newest(found)
    subjects = _subjects(found)
    _models(subjects)
    _next(found, subjects)


def _newest(found: Sequence[Run]) -> None:
    st.subheader("What the newest runs answer")
    at_work = {job.facts.run for job in jobs(reading.runs_folder())[0] if job.state in WORKING}
    for run in found[:NEWEST]:
        with st.container(border=True):
            st.markdown(f"**{plain(run_words(run))}**")
            st.markdown(plain(run_answers.answer(run, at_work=run.id in at_work)))
            with st.container(horizontal=True):
                for path, words in pages_of(reading.command(run)):
                    st.page_link(path, label=words, query_params={"run": run.id}, icon=":material/arrow_forward:")
                st.page_link("views/runs.py", label="About", query_params={"run": run.id}, icon=":material/info:")
    if len(found) > NEWEST:
        st.page_link("views/runs.py", label=f"All {len(found)} runs", icon=":material/list:")


def _subjects(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by model, newest first: the name, and the hash where two models share one."""
    subjects: dict[str, list[Run]] = {}
    hashes: dict[str, set[str]] = {}
    for run in found:
        model = run.manifest.get("model") or {}
        if "name" in model:
            hashes.setdefault(str(model["name"]), set()).add(str(model.get("sha256", "")))
    for run in found:
        model = run.manifest.get("model") or {}
        if "name" in model:
            name = str(model["name"])
            several = len(hashes[name]) > 1
            subjects.setdefault(f"{name} ({str(model.get('sha256', ''))[:8]})" if several else name, []).append(run)
    return subjects


def _models(subjects: dict[str, list[Run]]) -> None:
    st.subheader("Models")
    rows = []
    for name, runs in subjects.items():
        model = runs[0].manifest["model"]
        rows.append(
            {
                "model": name,
                "layers": model.get("layers"),
                "heads in each": model.get("heads"),
                "KV heads": model.get("kv_heads"),
                "window (tokens)": model.get("context"),
                "runs": len(runs),
                "asked": ", ".join(dict.fromkeys(reading.command(run) for run in runs)),
            }
        )
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, alt=f"Table of {len(rows)} models: their size, and what was asked"
    )


def _next(found: Sequence[Run], subjects: dict[str, list[Run]]) -> None:
    st.subheader("What can be asked next")
    if not subjects:
        st.info("No run says of which model it is. Type `headscope retrieval` to begin.")
        return
    name = pick("Of the model", "subject", list(subjects)) if len(subjects) > 1 else next(iter(subjects))
    model = next_steps.asked_model(subjects[name][0])
    own = {run.id for run in found if not reading.is_example(run)}
    there, of_subject = ([run for run in runs if run.id in own] for runs in (found, subjects[name]))
    states = {step: next_steps.why_not(step, there, of_subject) for step in next_steps.STEPS}
    for step, (reason, _) in states.items():
        if not reason:
            left, right = st.columns([2, 3], vertical_alignment="center")
            left.markdown(step.question)
            line = shlex.split(next_steps.command(step, model, of_subject))
            with right:
                submit_button("Run", line[1:], key=f"{step.run}-{model}", with_line=True)
    later = {step: state for step, state in states.items() if state[0]}
    if not later:
        return
    st.markdown(f"**Not now** ({len(later)})")
    for step, (reason, run) in later.items():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":gray[{step.question} {reason}]")
            pages = pages_of(step.run)
            if run is not None and pages:
                st.page_link(pages[0][0], label=f"Open {pages[0][1]}", query_params={"run": run.id})


if __name__ == "__main__":
    page()
