"""Head: one head, its scores, and what it copied from the needle word by word, or the roles that it carries."""

from typing import Any

import streamlit as st

from analysis.runs import Run
from probes.heads import parse_head
from views import excerpt, metrics, reading, role_tables, tables
from views.address import chosen_run, pick, show
from views.pages import Page

PAGE = Page("Head", ":material/search:", "Heads", 20)


def page() -> None:
    title = st.empty()
    title.title("Head")
    st.caption(
        "One head: its scores with intervals; with a retrieval run the words it copied from the needle and its score "
        "on each prompt, with a run of every head's roles the roles it carries."
    )
    run = chosen_run("retrieval", "sinks", "heads", "vision", "rhythm")
    frame = reading.heads(run)
    names = tables.head_order(frame)
    if asked := st.query_params.get("head"):
        parse_head(asked)
    name = _choose(names, default=tables.heads_table(frame, frame["metric"].iloc[0])["name"].iloc[0])
    title.title(f"Head {name}")
    _scores(run, name)
    if reading.command(run) == "retrieval":
        _copied(run, name)
    elif reading.command(run) == "heads":
        _roles(reading.summary(run), name)


def _scores(run: Run, name: str) -> None:
    layer, head, _ = parse_head(name)
    scores = tables.scores_of_head(reading.heads(run), layer, head)
    scores = scores.sort_values("metric", key=lambda names: names.map(metrics.metric_order(run).index))
    asked = [metrics.prompts_of(run, metric) for metric in scores["metric"]]
    scores["metric"] = [metrics.metric_of(run, metric).words for metric in scores["metric"]]
    several = len(set(asked)) > 1
    st.dataframe(
        scores.assign(prompts=asked) if several else scores,
        hide_index=True,
        alt=f"Scores of {name} with 95% intervals",
        column_config={
            "value": st.column_config.NumberColumn(format="%.3f"),
            "low": st.column_config.NumberColumn("95% from", format="%.3f"),
            "high": st.column_config.NumberColumn("95% to", format="%.3f"),
        },
    )
    n = f"n = {scores['n'].max()}" if scores["n"].nunique() == 1 else f"n = {scores['n'].min()} to {scores['n'].max()}"
    st.caption(
        f"{reading.model_name(run)} · {'prompts as in the table' if several else asked[0]}, {n} · "
        f"intervals: 95% over prompts · run {run.id}"
    )


def _roles(summary: dict[str, Any], name: str) -> None:
    st.subheader("Its roles")
    table = role_tables.evidence_of_head(summary, name)
    confirmed = list(table["role"][table["verdict"] == role_tables.CONFIRMED])
    st.markdown(f"{name}: **{', '.join(confirmed)}**." if confirmed else f"{name} has no confirmed role.")
    st.dataframe(table, hide_index=True, alt=f"Evidence for and against each role of {name}, on both halves of prompts")
    st.caption(
        "A role is chosen where the mean of one half of the prompts reaches its threshold, and confirmed where the "
        f"other half agrees. Intervals: {summary['confidence']:.0%} over the prompts of that other half."
    )


def _copied(run: Run, name: str) -> None:
    layer, head, _ = parse_head(name)
    cases = reading.cases(run)
    table = tables.cases_of_head(cases, layer, head)
    st.subheader("What it copied")
    rank = {
        case: f"{case} · score {score:.2f}" for case, score in zip(table["case"], table["retrieval score"], strict=True)
    }
    chosen = pick("Prompt (highest score first)", "case", list(table["case"]), words=rank.__getitem__)
    _reading(next(case for case in cases if case["case"] == chosen), f"{layer}-{head}", name)
    st.subheader("Its score on each prompt")
    st.dataframe(
        table,
        hide_index=True,
        key=f"cases-of-{name}",
        on_select=lambda: _follow_row(f"cases-of-{name}", list(table["case"])),
        selection_mode="single-row",
        alt=f"Table of {len(table)} prompts with the scores of {name}",
        column_config={
            column: st.column_config.NumberColumn(format="%.3f")
            for column in ("retrieval score", "LOCOS", "attention on the needle", "recall")
        },
    )


def _choose(names: list[str], default: str) -> str:
    """Previous and next buttons around a list of every head."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        before, field, after = st.empty(), st.container(width=130), st.empty()
    name = pick("Head", "head", names, default=default, place=field)
    at = names.index(name)
    for place, words, to in ((before, "← Previous", at - 1), (after, "Next →", at + 1)):
        there = 0 <= to < len(names)
        place.button(words, disabled=not there, on_click=show, args=("head", names[to] if there else name))
    return name


def _reading(case: dict[str, Any], key: str, name: str) -> None:
    copies = case["copies"].get(key, [])
    st.markdown(f"**Question** {case['question']}")
    st.markdown(f"**Right answer** {case['answer']}")
    verdict = "passed" if case["passed"] else "failed"
    st.markdown(f"**The model said** ({verdict}, recall {case['recall']:.2f}; the number is the generated step)")
    st.html(excerpt.response_html(case, key))
    st.markdown(
        "**In the prompt**: the needle is tinted; marked are the tokens copied, with the step that generated each"
    )
    st.html(excerpt.needle_html(case, key))
    first, stop = case["needle"]
    if copies:
        said = f"{name} copied {case['scores'][key]:.0%} of the answer's tokens"
    else:
        said = f"{name} copied nothing on this prompt"
    st.caption(f"{said} · needle at positions {first} to {stop - 1} of {case['tokens']} · haystack {case['haystack']}")


def _follow_row(key: str, cases: list[str]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        show("case", cases[rows[0]])


if __name__ == "__main__":
    page()
