"""The heads of a layer as a strip of small pictures: a click puts one of them on the page."""

import base64
from collections.abc import Callable, Mapping

import streamlit as st

from probes.heads import Head

KEY = "head-strip"  # Streamlit makes a class of a container's key
# A picture in a button's label is as high as a letter by itself; the strip is wider than a phone and scrolls.
STYLE = """<style>
.st-key-{KEY} {{ overflow-x: auto; padding: 3px; }}
.st-key-{KEY} > div {{ flex: none; }}
.st-key-{KEY} button {{ padding: 3px; }}
.st-key-{KEY} button p {{ display: flex; flex-direction: column; align-items: center; font-size: .75rem; }}
.st-key-{KEY} img {{ width: {side}px; height: {side}px; max-width: none; max-height: none; object-fit: contain; }}
.st-key-{KEY} button:disabled {{ outline: 2px solid #d55e00; color: inherit; cursor: default; }}
</style>"""


def head_strip(
    pictures: Mapping[Head, bytes],
    chosen: Head | None,
    choose: Callable[[str], None],
    *,
    side: int,
    kind: str = "png",
    words: Callable[[Head], str] = str,
) -> None:
    """pictures: of `side` pixels. The chosen one is outlined; `choose` gets the name of the one that is clicked."""
    st.html(STYLE.format(KEY=KEY, side=side))
    with st.container(horizontal=True, wrap=False, gap="xxsmall", key=KEY):
        for each, picture in pictures.items():
            url = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
            st.button(
                f"![Map of]({url}) {words(each)}", key=f"thumbnail-{each}", type="tertiary", disabled=each == chosen,
                on_click=choose, args=(str(each),),
            )  # fmt: skip
