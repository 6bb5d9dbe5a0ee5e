"""Image: where in its picture any token of a prompt looks, by one head, a layer or a set of heads."""

from collections import Counter
from collections.abc import Sequence

import streamlit as st

from analysis.maps.exact import mass, row
from analysis.maps.image_looks import head_looks, head_order, look_at, patch_table, widest_look
from analysis.maps.kept_layers import record_of
from analysis.maps.kept_picture import KeptPicture, has_picture, kept_picture
from analysis.runs import Run
from analysis.sinks import SINK_HEADS, SINK_THRESHOLD
from analysis.vision.showing import Look
from probes.heads import Head
from views import image_strip, image_words, new_map, picture, reading
from views.address import change_run, chosen_run, held, hold, pick, show
from views.change import change_several
from views.downloads import data_buttons
from views.kept_heads import chosen_head, held_position, looking_heads, of_heads
from views.pages import Page
from views.run_words import plain, run_words

# Not every run of map has a picture: the page Map links to this one where there is one.
PAGE = Page("Image", ":material/image:", "Heads", 40)

OPACITY = 80  # percent, of the strongest patch
PARTS = {"whole": "the whole picture", "close": "the picture closer up", "tiles": "its tiles"}
HOW = "headscope map --model emoji-llava --image photo.jpg"


def page() -> None:
    st.title("Image")
    st.caption("Where in its picture a token of the prompt or of the answer looks, patch by patch.")
    new_map.form()
    run = chosen_run("map")
    kept = _picture_of(run)
    record = record_of(run)
    texts = record["texts"]
    order = head_order(run)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        head = chosen_head([str(each) for each in sorted(order)], default=str(order[0]))
        heads = looking_heads(run, head)
        tokens = _part(kept)
    shares = mass(run, heads, kept.positions)
    query = held_position("query", len(texts), widest_look(shares, kept))
    show("query", str(query))
    look = look_at(kept, row(run, heads, query), tokens)
    left, right = st.columns([2, 3], gap="medium")
    with left:
        _overlay(kept, look, heads, tokens)
    with right:
        image_words.steps(kept, query, len(texts))
        _sentence(kept, look, heads, query, texts, float(shares[query]))
        image_words.words(run, kept, shares, query, texts)
        change_several(run, [str(each) for each in heads])
    looks = head_looks(run, kept, head.layer, query, tokens)
    image_strip.strip(looks, kept.pixels, kept.patches[tokens], head, alone=heads == [head])
    _numbers(run, kept, look, tokens, query)
    st.caption(_words(run, kept))


def _picture_of(run: Run) -> KeptPicture:
    """Where the run has none, says how to make one and ends the page."""
    kept = kept_picture(run)
    if kept is not None:
        return kept
    st.info(f"This run of headscope map read a text and has no picture: type `{HOW}` to make one that has.")
    other = next((each for each in reading.runs()[0] if _shows_a_picture(each)), None)
    if other is not None:
        label = f"Show the newest with a picture: {plain(run_words(other))}"
        st.button(label, on_click=change_run, args=(other.id,))
    st.page_link("views/map.py", label="See this run on the page Map", query_params={"run": run.id})
    st.stop()


def _shows_a_picture(run: Run) -> bool:
    return reading.command(run) == "map" and any(has_picture(case) for case in run.cases()[:1])


def _part(kept: KeptPicture) -> list[int]:
    """The image tokens that are drawn: some models see a picture twice, as a whole and in parts."""
    layers = kept.layers()
    if len(layers) == 1:
        return next(iter(layers.values()))
    return layers[pick("Patches of", "part", list(layers), words=PARTS.__getitem__, kind="buttons")]


def _overlay(kept: KeptPicture, look: Look, heads: Sequence[Head], tokens: Sequence[int]) -> None:
    above = st.container()
    opacity, boxes = _drawn(kept)
    sinks = [at for at, token in enumerate(tokens) if token in kept.sinks]
    objects = kept.objects if boxes else []
    there = ", ".join(sorted({each["name"] for each in objects}))
    above.altair_chart(
        picture.picture_chart(
            kept.pixels, kept.patches[tokens], look.attention, objects,
            strongest=opacity / 100, names=[kept.names[token] for token in tokens], marked=sinks,
        ),
        width="content",
        alt=f"The picture{f' with boxes around {there}' if there else ''}, and over it the attention {of_heads(heads)} "
        f"on each of {len(tokens)} patches; the table below holds the same numbers",
    )  # fmt: skip
    above.html(picture.colour_bar_html(look.strongest))
    said = f"{len(sinks)} visual sink{'s' * (len(sinks) > 1)}, with a cross" if sinks else "No visual sink"
    st.caption(
        f"{said}: a patch on which {SINK_HEADS:.0%} of the kept heads park over {SINK_THRESHOLD:.0%} of their "
        "attention, whatever is asked."
    )


def _drawn(kept: KeptPicture) -> tuple[int, bool]:
    """Opacity of the strongest patch in percent, and whether boxes are shown; both are in the address."""
    asked = held("opacity")
    st.session_state["image-opacity"] = int(asked) if asked in map(str, range(101)) else OPACITY
    with st.container(horizontal=True, vertical_alignment="bottom"):
        opacity = st.slider(
            "Opacity", 0, 100, step=5, format="%d%%", key="image-opacity", width=180,
            on_change=lambda: hold("opacity", str(st.session_state["image-opacity"])),
        )  # fmt: skip
        boxes = bool(kept.objects) and pick("Objects", "boxes", ["shown", "hidden"], kind="buttons") == "shown"
    return opacity, boxes


def _sentence(
    kept: KeptPicture, look: Look, heads: Sequence[Head], query: int, texts: Sequence[str], share: float
) -> None:
    token = repr(texts[query]).replace("`", "'")  # said as code: a token may be anything, Markdown included
    if query < kept.positions[0]:
        st.info(f"Token {query} stands before the picture and does not see it: choose one behind it.")
        return
    drawn = "" if len(look.attention) == len(kept.positions) else f", {look.whole:.2%} to the patches drawn here"
    st.markdown(
        f"`{token}` (token {query}) gives **{share:.2%}** of its attention to the picture{drawn}, {of_heads(heads)}. "
        f"The strongest of {len(look.attention)} patches gets {look.strongest:.2%}; an even look would give each "
        f"{look.even:.2%}."
    )


def _numbers(run: Run, kept: KeptPicture, look: Look, tokens: Sequence[int], query: int) -> None:
    frame = patch_table(kept, look, tokens)
    st.markdown("**Patch by patch**")
    st.dataframe(
        frame, hide_index=True, height=280,
        alt=f"Table of {len(frame)} patches, the strongest first: {', '.join(frame.columns)}",
        column_config={"weight": st.column_config.NumberColumn(format="%.6f")},
    )  # fmt: skip
    data_buttons(frame, f"{run.id}-{query}-patches")


def _words(run: Run, kept: KeptPicture) -> str:
    width, height = kept.size
    shown = kept.pixels.shape[1], kept.pixels.shape[0]
    scaled = f", kept as {shown[0]} x {shown[1]}" if shown != kept.size else ""
    sizes = Counter((grid.rows, grid.columns) for grid in kept.grids)
    grids = ", ".join(
        f"{count} grid{'s' * (count > 1)} of {rows} x {columns} patches" for (rows, columns), count in sizes.items()
    )
    return (
        f"{plain(reading.model_name(run))} · {plain(kept.name)}, {width} x {height} pixels{scaled} · "
        f"{grids} (rows x columns) · where a token looks serves to say what comes after it · one prompt: no intervals"
    )


if __name__ == "__main__":
    page()
