"""The button that stands beside every picture of heads: change them, and see what follows."""

from collections.abc import Sequence

import streamlit as st

from analysis.runs import Run

MOST = 50  # heads that are handed over at once; a selector on the page Bench takes any number


def change_button(run: Run, heads: Sequence[str], *, label: str = "Change this head") -> None:
    """Opens Bench with these heads, written L17H4, in the intervention and `run` as the run whose model they are of."""
    if st.button(label, icon=":material/tune:", help="Build an intervention from it, and see what follows."):
        st.switch_page("views/bench.py", query_params={"run": run.id, "change": ",".join(heads)})


def change_several(run: Run, heads: Sequence[str]) -> None:
    """The same for a list of heads; of a long one the first."""
    few = heads[:MOST]
    if len(few) == 1:
        words = f"Change {few[0]}"
    else:
        words = f"Change these {len(few)} heads" if len(few) == len(heads) else f"Change the first {MOST} heads"
    change_button(run, few, label=words)
