"""One picture on the page Vision: its caption word by word, and where a head looked for the word that is chosen."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st

from analysis.runs import Run
from analysis.vision.showing import Shown, marks
from probes.heads import parse_head
from views import caption, picture, reading, tables
from views.address import forget, pick, show
from views.run_words import plain, quoted

FEW = 10  # heads of the mean
TOP = f"mean of the top {FEW} heads"
NOTHING = "no map, the picture alone"


def section(run: Run, frame: pd.DataFrame, ranked_by: str, words: str) -> None:
    """frame: the scores of every head; ranked_by: the metric whose highest heads are the top ones, `words` its name."""
    st.subheader("Where a head looks for a word")
    shown = reading.shown_pictures(run)
    if not shown:
        st.info("The run kept no maps of pictures: run it again with `--shown 8`.")
        return
    of_picture = {name: f"{row['set']} · {name} · {_invented(row)}" for name, row in shown.items()}
    name = pick("Picture", "picture", list(shown), words=of_picture.__getitem__)
    row, kept = shown[name], reading.maps(run, name)
    step = _word(row)
    heads = tables.head_order(frame)
    best = list(tables.heads_table(frame, ranked_by)["name"].head(FEW))
    chosen = pick("Head", "looking", [TOP, *heads, NOTHING], help=f"The top heads by {words}: {', '.join(best)}.")
    _caption(run, row, step, name, chosen)
    _picture(run, row, kept, step, chosen, best if chosen == TOP else [chosen], words)


def _word(row: Mapping[str, Any]) -> int:
    """The chosen token of the caption: a list, and buttons to the ones before and after it."""
    steps = [str(step) for step in range(len(row["tokens"]))]
    forget("word", unless=steps)
    first = next((str(one["step"]) for one in row["mentions"] if one["invented"]), None)
    first = first or next((str(one["step"]) for one in row["mentions"]), "0")
    marked = marks(row["tokens"], row["caption"], row["mentions"])
    signs = {"": "", "true": " · in the picture", "invented": " · invented"}
    words = {at: f"{at}: {row['tokens'][int(at)]!r}{signs[marked[int(at)][0]]}" for at in steps}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        before, field, after = st.empty(), st.container(width=250), st.empty()
    step = int(pick("Word (or click one below)", "word", steps, default=first, words=words.__getitem__, place=field))
    for place, label, to in ((before, "←", step - 1), (after, "→", step + 1)):
        there = 0 <= to < len(steps)
        place.button(
            label, help="The token before" if to < step else "The token after", disabled=not there,
            on_click=show, args=("word", steps[to] if there else str(step)),
        )  # fmt: skip
    return step


def _caption(run: Run, row: Mapping[str, Any], step: int, name: str, chosen: str) -> None:
    st.html(caption.LEGEND)

    def link(to: int) -> str:
        return "?" + urlencode({"run": run.id, "picture": name, "looking": chosen, "word": to})

    st.html(
        caption.bars_html(
            row["tokens"], row["caption"], row["mentions"], row["token_divergence"], chosen=step, link=link
        )
    )
    st.caption(
        "Bars: T-VHD, how much what the heads say changes as the picture is taken away, of this caption's "
        f"{len(row['tokens'])} tokens; the highest is {max(row['token_divergence']):.3g}. "
        f"Named and not there: {plain(', '.join(_names(row, invented=True))) or 'nothing'}. "
        f"There and not named: {plain(', '.join(sorted(_there(row) - set(_names(row, invented=False))))) or 'nothing'}."
    )


def _picture(
    run: Run, row: Mapping[str, Any], kept: Shown, step: int, chosen: str, heads: Sequence[str], words: str
) -> None:
    look = None
    if chosen != NOTHING:
        pairs = [(layer, head) for layer, head, _ in map(parse_head, heads)]
        look = kept.look(step, pairs, per_layer=int(run.manifest["model"]["heads"]))
    said = marks(row["tokens"], row["caption"], row["mentions"])[step][1]
    token = row["tokens"][step]
    left, right = st.columns([1, 1])
    left.altair_chart(
        picture.picture_chart(kept.picture, kept.patches, look.attention if look else None, row["objects"], named=said),
        width="content",
        alt=f"The picture with boxes around {', '.join(sorted(_there(row)))}"
        + ("" if look is None else f", and the attention of {chosen} on each patch as {token!r} is written"),
    )
    if look is not None:
        left.html(picture.colour_bar_html(look.strongest))
    with right:
        if look is None:
            st.markdown("The picture, and the boxes of what is in it.")
            return
        st.markdown(
            f"As {quoted(token)} (step {step}) is written, {chosen} gives **{look.whole:.0%}** of its attention to "
            f"the picture, and the strongest of {len(look.attention)} patches {look.strongest:.2%}; an even look "
            f"would give each {look.even:.2%}."
        )
        st.caption(
            "The row of attention is the one that predicts the token. White: boxes of the objects; orange: of the "
            "object that the chosen word names. "
            + (f"The top heads, by {words}: {', '.join(heads)}." if chosen == TOP else "")
        )


def _there(row: Mapping[str, Any]) -> set[str]:
    return {each["name"] for each in row["objects"]}


def _names(row: Mapping[str, Any], *, invented: bool) -> list[str]:
    return list(dict.fromkeys(one["name"] for one in row["mentions"] if one["invented"] == invented))


def _invented(row: Mapping[str, Any]) -> str:
    names = _names(row, invented=True)
    return f"{len(names)} invented" if names else "nothing invented"
