"""The head in focus: moved by the arrow keys or by buttons, told in words, opened with the key O."""

from collections.abc import Collection, Sequence
from typing import get_args

import streamlit as st

from analysis import head_space
from analysis.head_space import Direction
from analysis.runs import Run
from views.address import held, hold, open_head, show
from views.change import change_button
from views.run_words import plain

OPEN = "O"  # not Enter, which is how the keyboard presses any other button


def focus(names: Sequence[str], default: str) -> str:
    """The head that the URL names, or else this session; where the run lacks it, the default."""
    name = held("head")
    if name and name not in names and st.query_params.get("head"):
        st.warning(f"The link asks for head {plain(repr(name))}, which this run doesn't have; in focus is {default}.")
    name = name if name in names else default
    hold("head", name)
    return name


def buttons(run: Run, name: str, kept: Collection[str], words: str) -> None:
    """Four arrows over the heads kept, an opener and a changer, and what the head in focus measures beside them."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for direction in get_args(Direction):
            to = head_space.step(kept, name, direction)
            st.button(
                direction.capitalize(),
                key=f"step-{direction}",
                shortcut=direction.capitalize(),
                help=f"Move the focus {direction}",
                disabled=to is None,
                on_click=show,
                args=("head", to or name),
            )
        if st.button(f"Open {name}", key="step-open", shortcut=OPEN):
            open_head(run.id, name)
        change_button(run, [name], label="Change it")
        st.markdown(words)


def move(name: str) -> None:
    """Put the focus on a head."""
    show("head", name)
