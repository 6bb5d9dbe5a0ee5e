"""Which part of the map is on screen: held in the URL, moved by buttons or typed."""

import streamlit as st

from analysis.maps.windows import Window, parse_stretch, whole_window
from probes.errors import HeadscopeError
from views.address import held, show
from views.run_words import plain

SIDES = ("queries", "keys")
HALF = 0.5


def chosen_window(tokens: int) -> Window:
    """What the URL asks for; the whole map, and why, where that isn't a part of the prompt."""
    found = {}
    for side in SIDES:
        asked = held(side)
        try:
            found[side] = parse_stretch(asked, tokens) if asked else (0, tokens)
        except HeadscopeError as error:
            st.warning(f"{plain(str(error))} Shown are all {side}.")
            found[side] = (0, tokens)
    return Window(tokens, found["queries"], found["keys"])


def window_controls(window: Window, pair: tuple[int, int]) -> None:
    """Buttons, and a field for either side. pair: the chosen query and key."""
    keys_left, keys_right = window.moved(keys=-HALF), window.moved(keys=HALF)
    up, down = window.moved(queries=-HALF), window.moved(queries=HALF)
    whole, near = whole_window(window.tokens), window.zoomed(HALF)
    with st.container(horizontal=True):
        _button("Zoom in", near, window, "Half as many tokens, around the middle")
        _button("Zoom out", window.zoomed(1 / HALF), window)
        _button("Whole map", whole, window)
        _button("←", keys_left, window, "Earlier keys")
        _button("→", keys_right, window, "Later keys")
        _button("↑", up, window, "Earlier queries")
        _button("↓", down, window, "Later queries")
        with st.popover("Window", icon=":material/crop_free:"):
            _button("Zoom in on the pair", window.zoomed(HALF, at=pair), window, "Around the chosen query and key")
            for side, ends in zip(SIDES, (window.queries, window.keys), strict=True):
                key = f"map-{side}"
                st.session_state[key] = _written(ends)
                st.text_input(
                    side.capitalize(), key=key, on_change=_follow, args=(side,), width=150,
                    help=f"From a token up to another, such as 0-{window.tokens}",
                )  # fmt: skip
    _open(window)


def _button(label: str, to: Window, now: Window, help: str | None = None) -> None:
    st.button(label, help=help, disabled=to == now, on_click=_open, args=(to,))


def _open(window: Window) -> None:
    show("queries", _written(window.queries))
    show("keys", _written(window.keys))


def _follow(side: str) -> None:
    show(side, str(st.session_state[f"map-{side}"]))


def _written(ends: tuple[int, int]) -> str:
    return f"{ends[0]}-{ends[1]}"
