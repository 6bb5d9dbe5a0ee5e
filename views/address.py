"""The address bar holds what is on screen, so that a copied link restores the exact view.

Every choice on a page has one name in the URL (run, head, metric, case, meaning, ...). The URL decides; a widget only
writes to it. Within a session a choice is remembered when the reader moves to another page and comes back.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import streamlit as st

from analysis.runs import Run
from views import reading
from views.run_words import plain, run_words, words_of
from views.unseen import seen

# Choices that mean nothing in another run ...
OF_ONE_RUN = (
    "case", "cell", "condition", "meaning", "k", "only", "picture", "word", "set", "trace", "token", "horizon", "share",
    "layers", "sink", "with", "against", "box", "queries", "keys", "query", "key", "heads", "part",
    "from", "task", "point", "control",
)  # fmt: skip
OF_ONE_COMMAND = ("metric", "where")  # ... and in a run of another command


def pick(
    label: str,
    name: str,
    options: Sequence[str],
    *,
    default: str | None = None,
    words: Callable[[str], str] = str,
    kind: Literal["list", "buttons"] = "list",
    help: str | None = None,
    place: Any = st,
) -> str:
    """A choice among `options`, held in the URL as `name`. Says so where a link names something that isn't there."""
    asked = st.query_params.get(name)
    wishes = (asked, _memory().get(name), default, *options)
    current = next(value for value in wishes if value is not None and value in options)
    if asked is not None and asked not in options:
        shown = plain(words(current))
        st.warning(f"The link asks for {name} {plain(repr(asked))}, which this run doesn't have; shown is {shown}.")
    key = f"pick-{name}"
    st.session_state[key] = current
    if kind == "list":
        place.selectbox(
            label, options, key=key, format_func=lambda each: seen(words(each)), help=help, on_change=_follow,
            args=(name,),
        )  # fmt: skip
    else:  # which reads Markdown
        place.segmented_control(
            label, options, key=key, format_func=lambda each: plain(words(each)), help=help, required=True,
            on_change=_follow, args=(name,),
        )  # fmt: skip
    show(name, current)
    return current


def pick_several(label: str, name: str, options: Sequence[str], *, words: Callable[[str], str] = str) -> list[str]:
    """Some of `options`, all at first, held in the URL as `name` with commas between them."""
    asked = st.query_params.get(name, _memory().get(name, "")).split(",")
    key = f"pick-{name}"
    st.session_state[key] = [option for option in options if option in asked] or list(options)

    def follow() -> None:
        show(name, ",".join(st.session_state[key]))

    chosen = st.pills(
        label, options, selection_mode="multi", key=key, format_func=lambda each: plain(words(each)), on_change=follow
    )
    show(name, ",".join(chosen))
    return chosen


def held(name: str) -> str:
    """A choice that is no list's: what the URL, or else this session, holds as `name`; empty where neither does."""
    return str(st.query_params.get(name, _memory().get(name, "")))


def hold(name: str, value: str) -> None:
    """Put such a choice in the URL; an empty one leaves it."""
    if value:
        show(name, value)
    else:
        forget(name, unless=())


def open_head(run: str, head: str) -> None:
    """Go to the page of a head."""
    st.switch_page("views/head.py", query_params={"run": run, "head": head})


def show(name: str, value: str) -> None:
    """Put a choice in the URL."""
    _memory()[name] = value
    if st.query_params.get(name) != value:
        st.query_params[name] = value


def forget(name: str, *, unless: Sequence[str]) -> None:
    """Drop a choice that another one has made meaningless: `pick` then begins with its default and warns of nothing."""
    if st.query_params.get(name) not in unless:
        st.query_params.pop(name, None)
    if _memory().get(name) not in unless:
        _memory().pop(name, None)


def choose_run() -> None:
    """The run picker of the sidebar."""
    found, _ = reading.runs()
    if not found:
        return
    with st.sidebar:
        pick(
            "Run",
            "run",
            [run.id for run in found],
            words=words_of(found).__getitem__,
            help="Newest first. Every page shows this run.",
        )
    if reading.is_example(found[0]):
        st.info(
            "There is no run in the folder yet, so this shows an example that ships with headscope. Type "
            "`headscope demo` to make runs of your own."
        )


def chosen_run(*commands: str) -> Run:
    """The run of the sidebar. Where there is none, or it is of another command, says what to do and ends the page.

    Without commands a run of any will do.
    """
    found, _ = reading.runs()
    if not found:
        nothing_yet()
    run = next((run for run in found if run.id == _memory().get("run")), found[0])
    if commands and reading.command(run) not in commands:
        other = next((run for run in found if reading.command(run) in commands), None)
        wanted = " or ".join(commands)
        if other is None:
            st.info(
                f"This page shows a run of headscope {wanted}, and there is none yet: type `headscope {commands[0]}`."
            )
        else:
            st.info(f"The run of the sidebar is of headscope {plain(reading.command(run))}; this page shows {wanted}.")
            st.button(f"Show the newest: {plain(run_words(other))}", on_click=change_run, args=(other.id,))
        st.stop()
    return run


def nothing_yet() -> None:
    st.info(f"There is no run in the folder `{reading.runs_folder()}` yet. Type `headscope demo` to make the first.")
    st.stop()


def _memory() -> dict[str, str]:
    return st.session_state.setdefault("remembered", {})


def _follow(name: str) -> None:
    value = st.session_state[f"pick-{name}"]
    if name == "run":
        change_run(value)
    else:
        st.query_params[name] = value


def change_run(run: str) -> None:
    commands = {each.id: reading.command(each) for each in reading.runs()[0]}
    same = commands.get(run) == commands.get(_memory().get("run", ""))
    for name in OF_ONE_RUN if same else OF_ONE_RUN + OF_ONE_COMMAND:
        _memory().pop(name, None)
        st.query_params.pop(name, None)
    _memory()["run"] = run
    st.query_params["run"] = run
