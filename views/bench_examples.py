"""Example by example: which got better, which worse; one of them open, with what was said under each condition."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from analysis.bench import examples
from analysis.bench.wording import differences
from analysis.runs import Run
from views import bench_tables, bench_texts, reading, tables
from views.address import pick, show
from views.run_words import plain
from views.unseen import seen

ROWS = "bench-examples"
BEFORE, AFTER = "Baseline", "Intervention"


def section(run: Run, task: str, point: str, chosen: Mapping[str, Any]) -> None:
    st.subheader("Example by example")
    cases = reading.cases(run)
    rows = examples.changes(cases, task, point, better=chosen["better"])
    if not rows:
        st.info("No example of this task is finished yet.")
        return
    worse, better = (sum(row["gain"] * sign > 0 for row in rows) for sign in (-1, 1))
    st.markdown(f"{worse} of {len(rows)} examples got worse, {better} better. Choose a row to open it below.")
    table = bench_tables.example_table(rows)
    names = [row["case"] for row in rows]
    key = f"{ROWS}-{task}-{point}"
    st.dataframe(
        table,
        hide_index=True,
        key=key,
        on_select=lambda: _follow_row(key, names),
        selection_mode="single-row",
        height=min(38 + 35 * len(table), 320),
        alt=f"Table of {len(table)} examples: baseline, intervention and random heads",
        column_config={
            name: st.column_config.NumberColumn(format="%.3g")
            for name in ("baseline", "intervention", "random heads", "change")
        },
    )
    said = table["what happened"] + " · " + table["example"]
    words = dict(zip(names, said, strict=True))
    name = pick("Example (largest loss first)", "case", names, words=words.__getitem__)
    _one(next(case for case in cases if case["case"] == name), point, chosen)


def _one(case: Mapping[str, Any], point: str, chosen: Mapping[str, Any]) -> None:
    question, answer = examples.asked(case["facts"])
    if question:
        st.text(seen(f"Question: {question}"))
    if answer:
        st.text(seen(f"Right answer: {answer}"))
    controls = examples.controls_of(case, point)
    said = {BEFORE: case["conditions"]["baseline"], AFTER: case["conditions"][point]}
    if controls:
        control = controls[0]
        if len(controls) > 1:
            control = pick("Random heads", "control", controls, words=lambda name: f"set {name.rpartition('/')[2]}")
        said[f"Random heads, set {control.rpartition('/')[2]}"] = case["conditions"][control]
    if all(each.get("response") is None for each in said.values()):
        st.info("This task reads the model's forecasts and has it write nothing, so there is no text to compare.")
        return
    st.html(bench_texts.LEGEND)
    before, after = (said[words].get("response") or "" for words in (BEFORE, AFTER))
    for place, (words, each) in zip(st.columns(len(said)), said.items(), strict=True):
        with place.container(border=True):
            st.markdown(f"**{words}** · {_value(each, chosen['metric'])}")
            if words == BEFORE:
                st.html(bench_texts.answer_html(differences(before, after)[0], bench_texts.GONE))
            else:
                st.html(bench_texts.answer_html(differences(before, each.get("response") or "")[1], bench_texts.NEW))


def _value(said: Mapping[str, Any], metric: str) -> str:
    verdict = {True: "✓ right · ", False: "✗ wrong · ", None: ""}[said.get("correct")]
    return f"{verdict}{plain(metric)} {tables.number(said['value'])}"


def _follow_row(key: str, names: list[str]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        show("case", names[rows[0]])
