"""Vision: what the model said of pictures, what its heads looked at for each word, and which heads look at all."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from analysis.runs import Run
from views import charts, estimates, looking, metrics, reading, tables, vision_tables
from views.address import chosen_run, pick, show
from views.pages import Page
from views.run_words import plain

PAGE = Page("Vision", ":material/visibility:", "Analyses", 60, opens=("vision",))

GRIDS = ("divergence", "image_mass", "ratio", "image_centric")


def page() -> None:
    st.title("Vision")
    st.caption("What the model says of pictures, where its heads look for each word, and which heads look at all.")
    run = chosen_run("vision")
    summary, frame = reading.summary(run), reading.heads(run)
    _at_a_glance(run, summary)
    looking.section(run, frame, "divergence", "VHD")
    _heads(run, summary, frame)
    st.subheader("One set of pictures")
    chosen = pick("Pictures", "set", list(summary["sets"]), kind="buttons")
    found = summary["sets"][chosen]
    _layers(run, found)
    _detectors(found)
    _grounding(found)
    _sinks(found, summary)
    _company(found)


def _at_a_glance(run: Run, summary: Mapping[str, Any]) -> None:
    rows = [{"pictures": name, "n": found["n"], **found["chair"]} for name, found in summary["sets"].items()]
    st.dataframe(
        tables.wide_table(rows, vision_tables.CHAIR),
        hide_index=True,
        alt="Table of sets of pictures: how many, and how much of what the captions name is invented",
    )
    blank = summary["blank"]
    st.caption(
        f"{plain(reading.model_name(run))} · asked: {plain(summary['question'])} · "
        f"up to {summary['new_tokens']} tokens · intervals: {summary['confidence']:.0%} over pictures, "
        "not corrected for many · CHAIR_i: share of the objects named that are not there; CHAIR_s: share of "
        f"captions with one · objects named of a grey picture: {len(blank['objects'])} · run {plain(run.id)}"
    )


def _heads(run: Run, summary: Mapping[str, Any], frame: pd.DataFrame) -> None:
    st.subheader("Which heads look at the image")
    there = [name for name in GRIDS if (frame["metric"] == name).any()]
    metric = pick("Heads by", "by", there, words=lambda name: metrics.metric_of(run, name).words, kind="buttons")
    meaning, table = metrics.metric_of(run, metric), tables.heads_table(frame, metric)
    st.markdown(f"**{tables.capital(meaning.words)}**: {meaning.about}.")
    key = f"vision-grid-{metric}"
    st.altair_chart(
        charts.head_grid(table, meaning.words, square_root=False),
        key=key,
        on_select=lambda: _follow_square(key),
        alt=f"Grid of {len(table)} heads by {meaning.words}, layers down and heads across; the largest is "
        f"{table['name'].iloc[0]} with {tables.number(table['value'].iloc[0])}. The page Heads holds the same numbers.",
    )
    heads = summary["heads"]
    st.caption(
        f"{tables.capital(meaning.prompts)}, n = {table['n'].max()}, all sets · a click lays the head's attention over "
        f"the picture above · the first {heads['few']} of {heads['count']} heads hold "
        f"{heads['divergence_share_of_few']:.0%} of the VHD · run {plain(run.id)}"
    )
    st.page_link("views/heads.py", label="The same with intervals", query_params={"run": run.id, "metric": metric})
    agreed = vision_tables.agreement_table(heads, summary["beside"])
    if agreed.empty:
        st.info("Four pictures with a caption are needed to see whether halves of them rank the heads alike.")
    else:
        st.markdown("**Would other pictures, or another training, rank the heads alike?**")
        st.dataframe(agreed, hide_index=True, alt="Table of agreements between rankings of heads, beside luck")


def _follow_square(key: str) -> None:
    for point in st.session_state[key].selection[charts.PICK]:
        show("looking", tables.head_name(int(point["layer"]), int(point["head"])))


def _layers(run: Run, found: Mapping[str, Any]) -> None:
    if "layers" not in found:
        st.info("The model said nothing of any of these pictures.")
        return
    layers, n = found["layers"], found["n"]
    left, right = st.columns(2)
    left.altair_chart(
        estimates.lines(tables.long_table(layers, vision_tables.MASSES), "layer", "Attention on", "share"),
        alt=f"Attention per layer on image, question and caption, mean over heads with bands over {n} pictures. "
        "The table below holds the same numbers.",
    )
    right.altair_chart(
        estimates.lines(tables.long_table(layers, {"divergence": "VHD"}), "layer", "VHD", "size"),
        alt=f"VHD per layer, mean over heads with bands over {n} pictures. The table below holds the same numbers.",
    )
    with st.expander(f"The same numbers, {len(layers)} layers, mean over heads, n = {n} pictures"):
        measures = {"divergence": "VHD", "image_centric": "image-centric", **vision_tables.MASSES}
        st.dataframe(tables.wide_table(layers, measures), hide_index=True, alt="Table of layers: VHD and attention")


def _detectors(found: Mapping[str, Any]) -> None:
    st.subheader("Do the heads betray an invented object?")
    detectors = found["detectors"]
    st.markdown(
        f"{detectors['invented']} of {detectors['words']} objects named are invented. AUROC: how often an invented one "
        "scores below one that is there, as the first token of its name is written; 0.5 is blind."
    )
    for sentence in vision_tables.not_judged(detectors):
        st.info(f"Not judged: {plain(sentence)}")
    rows = vision_tables.detector_rows(detectors)
    if rows:
        st.altair_chart(
            estimates.dots(tables.long_table(rows, {"auroc": "AUROC"}), "detector", "measure", "AUROC", "share"),
            alt="AUROC of each detector with its 95% interval over captions. The table below holds the same numbers.",
        )
        st.dataframe(
            vision_tables.detector_table(detectors),
            hide_index=True,
            alt="Table of detectors: AUROC with its interval over captions, number of captions, heads",
        )
        st.caption("Chosen heads: on one half of the captions; judged on the other. Intervals: over captions.")
    struck = vision_tables.struck_table(detectors)
    if not struck.empty:
        st.markdown("**What is left of the captions if every suspect is struck out?**")
        st.dataframe(struck, hide_index=True, alt="Table of detectors: words struck out, and the change it makes")
        st.caption(
            "Threshold: on one half of the captions, where it may strike 1 in 100 true words; judged on the other "
            "half, paired by caption."
        )


def _grounding(found: Mapping[str, Any]) -> None:
    st.subheader("Does attention point at the object that is named?")
    if not found.get("grounding"):
        st.info("No object that is in a picture was named, so nothing could be pointed at.")
        return
    st.dataframe(
        vision_tables.pointing_table(found["grounding"]),
        hide_index=True,
        alt="Table of maps: how much of them lies in the box of the object named, beside maps that do not look",
    )
    st.caption(f"First mentions of true objects, n = {found['grounding']['n']} pictures. By area: 1 is chance.")


def _sinks(found: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    st.subheader("Visual sinks")
    if why_not := summary["sink_dimensions"]["why_not"]:
        st.info(f"No sinks by dimension: {plain(why_not.rstrip('.'))}.")
    if found.get("sinks"):
        st.dataframe(
            vision_tables.sink_table(found["sinks"]),
            hide_index=True,
            alt="Table of visual sinks by each rule: how many, in the background, and the base rate",
        )
    st.caption("Image tokens that take attention whatever is asked. Background: in no object's box.")


def _company(found: Mapping[str, Any]) -> None:
    table = vision_tables.company_table(found["company"])
    st.subheader("What is invented")
    if table.empty:
        st.info("Nothing was invented, or nothing that belongs to a theme.")
        return
    st.dataframe(table, hide_index=True, alt="Table: share of the invented objects that belong to the scene, and luck")


if __name__ == "__main__":
    page()
