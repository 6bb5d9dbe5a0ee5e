"""What a head copied from the needle, prompt by prompt: from a run of `headscope retrieval`."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from analysis.runs import Run
from probes.heads import Head
from views import excerpt, reading, tables
from views.address import pick, show
from views.job_card import submit_button
from views.run_words import plain


def section(runs: Sequence[Run], head: Head, model: str) -> None:
    """runs: the retrieval runs of this model, of which the first is shown. model: as a command names it."""
    st.subheader("What it copied")
    if not runs:
        st.markdown("No run has asked yet what it copies from a needle in a long text.")
        line = ["retrieval", "--model", model, "--grid", "quick"]
        submit_button("Hide needles and see which heads fetch them", line, key="head-retrieval")
        return
    _copied(runs[0], reading.cases(runs[0]), head)


def _copied(run: Run, cases: list[dict[str, Any]], head: Head) -> None:
    table = tables.cases_of_head(cases, head.layer, head.head)
    rank = {
        case: f"{case} · score {score:.2f}" for case, score in zip(table["case"], table["retrieval score"], strict=True)
    }
    chosen = pick("Prompt (highest score first)", "case", list(table["case"]), words=rank.__getitem__)
    _reading(next(case for case in cases if case["case"] == chosen), head)
    with st.expander(f"Its score on each of {len(table)} prompts"):
        st.dataframe(
            table,
            hide_index=True,
            key=f"cases-of-{head}",
            on_select=lambda: _follow_row(f"cases-of-{head}", list(table["case"])),
            selection_mode="single-row",
            alt=f"Table of {len(table)} prompts with the scores of {head}",
            column_config={
                column: st.column_config.NumberColumn(format="%.3f")
                for column in ("retrieval score", "LOCOS", "attention on the needle", "recall")
            },
        )
    st.caption(f"Prompts of the run {plain(run.id)}")


def _reading(case: dict[str, Any], head: Head) -> None:
    key = f"{head.layer}-{head.head}"
    copies = case["copies"].get(key, [])
    st.markdown(f"**Question** {plain(case['question'])}")
    st.markdown(f"**Right answer** {plain(case['answer'])}")
    verdict = "passed" if case["passed"] else "failed"
    st.markdown(f"**The model said** ({verdict}, recall {case['recall']:.2f}; the number is the generated step)")
    st.html(excerpt.response_html(case, key))
    st.markdown(
        "**In the prompt**: the needle is tinted; marked are the tokens copied, with the step that generated each"
    )
    st.html(excerpt.needle_html(case, key))
    first, stop = case["needle"]
    if copies:
        said = f"{head} copied {case['scores'][key]:.0%} of the answer's tokens"
    else:
        said = f"{head} copied nothing on this prompt"
    haystack = plain(str(case["haystack"]))
    st.caption(f"{said} · needle at positions {first} to {stop - 1} of {case['tokens']} · haystack {haystack}")


def _follow_row(key: str, cases: list[str]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        show("case", cases[rows[0]])
