"""Ablation: what the model loses without its top heads, beside what it loses without as many random ones."""

from typing import Any

import streamlit as st

from views import charts, reading, tables
from views.address import chosen_run, pick
from views.change import change_several
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain
from views.unseen import seen

PAGE = Page("Ablation", ":material/content_cut:", "Analyses", 5, opens=("ablation",))

ALL = "all prompts"
CHANGED = "answers that changed"


def page() -> None:
    st.title("Ablation")
    st.caption("Accuracy with the top K heads switched off, beside as many random heads: the gap is what the heads do.")
    run = chosen_run("ablation")
    summary = reading.summary(run)
    table = tables.curve_table(summary)
    meanings = list(dict.fromkeys(f"{row.meaning}/{row.phase}" for row in table.itertuples()))
    chosen = pick("What off means", "meaning", meanings, words=lambda name: name.replace("/", ", "), kind="buttons")
    meaning, phase = chosen.split("/")
    shown = table[(table["meaning"] == meaning) & (table["phase"] == phase)].sort_values("k").reset_index(drop=True)
    last = shown.iloc[-1]
    st.altair_chart(
        charts.curve(shown, summary["baseline"]),
        alt=f"Accuracy against heads ablated ({meaning}, {phase}). Baseline {summary['baseline']['value']:.2f}; at "
        f"K = {last['k']} {last['ablated']:.2f} with the top heads off and {last['control']:.2f} with random ones off.",
    )
    st.caption(
        f"{plain(reading.model_name(run))} · needle retrieval prompts · "
        f"baseline {tables.interval(summary['baseline'])} · bands: 95% over prompts; "
        f"control: {last['seeds']} draws of random heads · "
        f"heads ranked by run {plain(summary['heads_from'])} · run {plain(run.id)}"
    )
    st.subheader("The same numbers")
    st.markdown(
        "Difference is control minus ablated, on the same prompts (paired bootstrap); above 0 the heads matter."
    )
    st.dataframe(
        tables.curve_words(shown),
        hide_index=True,
        alt=f"Accuracy per K, ablated, control and their difference with 95% intervals, {meaning}, {phase}",
    )
    data_buttons(table, run.id, of="every meaning")
    with st.expander(f"The {len(summary['ranked'])} heads, strongest first"):
        st.text(", ".join(summary["ranked"]))
        change_several(run, summary["ranked"])
    _texts(reading.cases(run), meaning, phase, [str(k) for k in shown["k"]])


def _texts(cases: list[dict[str, Any]], meaning: str, phase: str, ks: list[str]) -> None:
    st.subheader("Prompt by prompt")
    left, middle, right = st.columns([1, 2, 2])
    k = int(pick("K", "k", ks, default=ks[-1], place=left))
    table = tables.verdicts(cases, meaning, phase, k)
    if table.empty:
        st.info(f"No case was asked with {k} heads off yet.")
        return
    changed = table[table["baseline"] != table["ablated"]]
    lost = int((changed["baseline"]).sum())
    which = pick("List", "only", [ALL, CHANGED], kind="buttons", place=middle)
    listed = changed if which == CHANGED and len(changed) else table
    st.markdown(
        f"Of {len(table)} prompts, {lost} were answered before and not with the top {k} heads off; "
        f"{len(changed) - lost} the other way round."
    )
    st.dataframe(
        listed, hide_index=True, alt="Per prompt: answered without ablation, ablated, and with random heads off"
    )
    name = pick("Prompt", "case", list(listed["case"]), place=right)
    case = next(case for case in cases if case["case"] == name)
    st.text(seen(f"Question: {case['question']}\nRight answer: {case['answer']}"))
    top, control = tables.said_under(case, meaning, phase, k)
    baseline, ablated, random = st.columns(3)
    _said(baseline, "Baseline", case["baseline"])
    _said(ablated, f"Top {k} heads off", top)
    for seed, said in control.items():
        _said(random, f"{k} random heads off (seed {seed})", said)


def _said(place: Any, words: str, said: Any) -> None:
    with place.container(border=True):
        if said is None:
            st.text(f"{words}: not asked yet")
            return
        st.markdown(f"**{words}** · {'✓ answered' if said['correct'] else '✗ failed'} · recall {said['recall']:.2f}")
        st.text(seen(said["response"].strip()) or "(nothing)")


if __name__ == "__main__":
    page()
