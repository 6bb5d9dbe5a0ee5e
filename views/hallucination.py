"""Hallucination: does a mitigation make the model invent less, or just say less?"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from analysis.runs import Run
from views import caption, reading, trade
from views import hallucination_tables as tables
from views.address import chosen_run, forget, pick
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain

PAGE = Page("Hallucination", ":material/blur_on:", "Analyses", 70, opens=("hallucinate",))

PARTS = {"judge": "pictures that judge", "dev": "pictures to choose heads and strengths on, not to judge on"}


def page() -> None:
    st.title("Hallucination")
    st.caption("What each mitigation does to the objects that a model invents in pictures, and to all else it says.")
    run = chosen_run("hallucinate")
    summary = reading.summary(run)
    chosen = pick("Pictures", "set", list(summary["sets"]), kind="buttons")
    _about(run, summary, chosen)
    captions, pope = (tables.judged(summary, chosen, task) for task in ("captions", "pope"))
    if captions:
        _trade(run, captions)
        _captions(run, captions, chosen)
    if pope:
        _pope(pope)
    _published(summary)
    if captions:
        _examples(run, chosen, list(captions))


def _about(run: Run, summary: Mapping[str, Any], chosen: str) -> None:
    st.caption(
        f"{plain(reading.model_name(run))} · {summary['sets'][chosen]['n']} "
        f"{PARTS.get(summary['part'], plain(summary['part']))} · asked: {plain(summary['question'])} · "
        f"up to {summary['new_tokens']} tokens · intervals: {summary['confidence']:.0%} "
        f"over pictures, not corrected for many · run {plain(run.id)}"
    )


def _trade(run: Run, arms: Mapping[str, Mapping[str, Any]]) -> None:
    st.subheader("Invented against found")
    points = tables.point_table(arms)
    st.altair_chart(
        trade.trade_chart(points),
        alt=f"CHAIR_i against recall with 95% intervals for {len(points)} arms, the untreated one ringed. The table "
        "below holds the same numbers.",
    )
    st.caption(
        "Better is to the right and down. Ringed, with the dotted lines: no mitigation. To the left and down: it "
        "invents less because it says less."
    )


def _captions(run: Run, arms: Mapping[str, Mapping[str, Any]], chosen: str) -> None:
    st.subheader("Captions")
    table = tables.caption_table(arms)
    st.dataframe(
        table,
        hide_index=True,
        alt=f"Table of {len(table)} arms: verdict, CHAIR, recall, precision, F1 and length with 95% intervals",
    )
    st.caption(
        "CHAIR_i: share of the objects named that are not there, CHAIR_s: share of captions with one; recall: share of "
        "the objects there that are named. The verdict looks at CHAIR_i, recall and F1: helps, hurts, trades recall "
        "(says less), trades precision (says more, right and wrong), no effect."
    )
    data_buttons(table, f"{run.id}-{chosen}")
    changes = tables.change_table(arms)
    if not changes.empty:
        st.markdown("**Differences**, paired by picture: to no mitigation, and to the same with as many random heads")
        st.dataframe(
            changes, hide_index=True, alt=f"Table of {len(changes)} differences with 95% intervals and verdict"
        )


def _pope(arms: Mapping[str, Mapping[str, Any]]) -> None:
    st.subheader("Questions of yes and no (POPE)")
    table = tables.pope_table(arms)
    n = next(iter(arms.values()))["mean_f1"]["n"]
    st.dataframe(table, hide_index=True, alt=f"Table of {len(table)} arms: F1 and share of yes, with 95% intervals")
    st.caption(f"Is this object in the image? {n} pictures; half of the objects are there. Intervals: over pictures.")


def _published(summary: Mapping[str, Any]) -> None:
    with st.expander("What the papers report"):
        st.dataframe(tables.published_table(summary), hide_index=True, alt="Table of the papers' numbers")
        st.caption(
            "LLaVA-1.5-7B on 500 images of COCO, up to 512 tokens: another model on other pictures, so only the "
            "direction of a change can be compared."
        )


def _examples(run: Run, chosen: str, arms: list[str]) -> None:
    st.subheader("One picture under each")
    said = tables.captions_of(reading.cases(run), chosen)
    forget("picture", unless=list(said))
    untreated = {name: tables.invented(each.get(tables.UNTREATED, {"mentions": []})) for name, each in said.items()}
    words = {
        name: f"{name} · invented without mitigation: {', '.join(them) or 'nothing'}"
        for name, them in untreated.items()
    }
    first = next((name for name, them in untreated.items() if them), None)
    name = pick("Picture", "picture", list(said), default=first, words=words.__getitem__)
    there = sorted({each["name"] for row in said[name].values() for each in row["objects"]})
    st.markdown(f"In the picture: **{plain(', '.join(there))}**")
    st.html(caption.LEGEND)
    for arm in arms:
        if arm not in said[name]:
            continue
        row = said[name][arm]
        st.markdown(f"**{plain(arm)}**")
        st.html(caption.caption_html(row["tokens"], row["caption"], row["mentions"]))
        st.caption(
            f"invented: {plain(', '.join(tables.invented(row))) or 'nothing'} · not named: "
            f"{plain(', '.join(tables.missed(row))) or 'nothing'} · {len(row['tokens'])} tokens"
        )


if __name__ == "__main__":
    page()
