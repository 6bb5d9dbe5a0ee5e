"""What a head writes, by the weights alone (`headscope circuits`) and in a pair of prompts (`headscope patch`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analysis.head_story import standings
from analysis.runs import Run
from probes.heads import Head
from views import reading, tables
from views.job_card import submit_button
from views.run_words import plain

KINDS = {"Q": "as query", "K": "as key", "V": "as value"}


def section(circuits: Sequence[Run], patches: Sequence[Run], head: Head, model: str) -> None:
    """circuits, patches: runs of these commands on this model. model: as a command names it."""
    st.subheader("What it writes")
    _by_weights(circuits, head, model)
    if patches:
        _in_prompts(patches[0], head)
    else:
        st.caption("What it puts on an answer itself, in a prompt of yours: type `headscope patch --help`.")


def _by_weights(runs: Sequence[Run], head: Head, model: str) -> None:
    there = [run for run in runs if _row(run, "every_head", head)]
    if not there:
        st.markdown("No run has read yet from the weights which tokens it makes likelier.")
        submit_button("Read it off the weights", ["circuits", "--model", model], key="head-circuits")
        return
    run = next((run for run in there if _row(run, "heads", head)), there[0])
    row, sought = _row(run, "every_head", head), _row(run, "heads", head).get("seeks")
    table = pd.DataFrame(
        {
            "where it looks at": [repr(token) for token in reading.summary(run)["tokens"]],
            "it makes likelier": [_listed(tokens) for tokens in row["writes"]],
        }
        | ({"standing on it, it looks for": [_listed(tokens) for tokens in sought]} if sought else {})
    )
    st.dataframe(
        table, hide_index=True, alt=f"Tokens that {head} makes likelier where it looks at some words", row_height=50
    )
    if not sought:
        line = ["circuits", "--model", model, "--heads", str(head)]
        submit_button("Show what it looks for, too", line, key="head-sought")
    said = [
        _partners("Of earlier heads it reads most", row["reads"]),
        _partners("Of later heads, these read it most:", row["read_by"]),
    ]
    st.markdown(" ".join(sentence for sentence in said if sentence))
    st.caption(
        "By the weights alone, without a prompt: the head's OV circuit, and QK where it looks for something,"
        " on the embeddings of these tokens; beside the heads how much of each other they read, as composition above "
        f"chance · run {plain(run.id)}"
    )


def _in_prompts(run: Run, head: Head) -> None:
    table = standings({run.id: reading.heads(run)}, head)
    row = table[table["metric"] == "attribution"]
    if row.empty:
        return
    summary, value = reading.summary(run), row["value"].iloc[0]
    answer, wrong = (plain(repr(summary[name])) for name in ("answer", "wrong"))
    st.markdown(
        f"At the end of the prompt of the run {plain(run.id)} it puts {tables.number(value)} logits itself on {answer} "
        f"against {wrong}: place {row['place'].iloc[0]} of {row['of'].iloc[0]} heads."
    )


def _row(run: Run, part: str, head: Head) -> Mapping[str, Any]:
    """What a part of a circuits run's summary says of the head; empty where it says nothing."""
    return next((row for row in reading.summary(run).get(part, []) if row["head"] == str(head)), {})


def _listed(tokens: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in tokens)


def _partners(begin: str, found: Mapping[str, Any]) -> str:
    said = [
        f"{found[kind]['head']} {words} ({found[kind]['score']:.2f})" for kind, words in KINDS.items() if kind in found
    ]
    return f"{begin} {', '.join(said)}." if said else ""
