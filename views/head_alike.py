"""The heads most like one, over the metrics of all runs of the model: links to them, and what they share."""

from collections.abc import Callable, Mapping

import pandas as pd
import streamlit as st

from analysis.head_story import END, alike
from analysis.runs import Run
from probes.errors import HeadscopeError
from probes.heads import Head
from views import metrics
from views.run_words import plain

MOST = 3  # shared metrics that are named


def links(run: Run, near: pd.DataFrame) -> None:
    """Links to the pages of the nearest heads."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown("Most like it:")
        for name in near["name"]:
            st.page_link("views/head.py", label=name, query_params={"run": run.id, "head": name})


def nearest(frames: Mapping[str, pd.DataFrame], head: Head) -> pd.DataFrame | str:
    """The nearest heads, or why there are none."""
    try:
        return alike(frames, head)
    except HeadscopeError as error:
        return str(error)


def section(runs: Mapping[str, Run], frames: Mapping[str, pd.DataFrame], near: pd.DataFrame | str, head: Head) -> None:
    """runs: those of `frames`, by id."""
    st.subheader("Heads like it")
    if isinstance(near, str):
        st.info(plain(near))
        return
    words = _words(runs, frames)
    st.dataframe(
        pd.DataFrame(
            {
                "head": near["name"],
                "distance": near["distance"],
                "both among the highest in": [_listed(names, words) for names in near["both_highest"]],
                "both among the lowest in": [_listed(names, words) for names in near["both_lowest"]],
            }
        ),
        hide_index=True,
        alt=f"The heads nearest to {head} and the metrics at whose ends both stand",
        column_config={"distance": st.column_config.NumberColumn(format="%.3f")},
    )
    st.caption(
        f"Distance: root of the mean squared difference of their places in {near['metrics'].iloc[0]} metrics that all "
        f"heads have, from 0 (alike) to 1. Among the highest or lowest: in the {END:.0%} at that end."
    )


def _words(runs: Mapping[str, Run], frames: Mapping[str, pd.DataFrame]) -> Callable[[str], str]:
    found: dict[str, str] = {}
    for run, frame in frames.items():
        for name in frame["metric"].unique():
            found.setdefault(str(name), metrics.metric_of(runs[run], str(name)).words)
    return found.__getitem__


def _listed(names: tuple[str, ...], words: Callable[[str], str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(map(words, names[:MOST])) + more
