"""Fields of the Bench form that type into the URL: what they hold is there, and stays there on a copied link."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from views.address import held, hold


def text(label: str, name: str, *, place: Any = st, clean: Callable[[str], str] = str.strip, **shown: Any) -> str:
    """A line of text, held as `name`."""
    key, value = f"bench-{name}", clean(held(name))
    st.session_state[key] = value
    place.text_input(label, key=key, on_change=lambda: hold(name, clean(st.session_state[key])), **shown)
    hold(name, value)
    return value


def whole(label: str, name: str, usual: int, *, least: int, most: int, place: Any = st, help: str) -> int:
    """A whole number, held as `name`; a link that holds none such shows the usual one."""
    key, asked = f"bench-{name}", held(name)
    value = int(asked) if asked.isdecimal() and len(asked) < 12 and least <= int(asked) <= most else usual
    st.session_state[key] = value
    place.number_input(
        label,
        min_value=least,
        max_value=most,
        step=1,
        key=key,
        help=help,
        on_change=lambda: hold(name, str(st.session_state[key])),
    )
    hold(name, str(value))
    return value


def open_choice(
    label: str,
    key: str,
    current: str,
    options: Sequence[str],
    follow: Callable[[], None],
    *,
    place: Any = st,
    **shown: Any,
) -> None:
    """A list that also takes what is typed."""
    st.session_state[key] = current
    every = list(dict.fromkeys([current, *options]))
    place.selectbox(label, every, key=key, accept_new_options=True, on_change=follow, **shown)
