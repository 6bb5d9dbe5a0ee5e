"""The button that stands beside every picture of heads: change them, and see what follows."""

from collections.abc import Sequence

import streamlit as st

from analysis.runs import Run


def change_button(run: Run, heads: Sequence[str], *, label: str = "Change this head") -> None:
    """Opens Bench with these heads, written L17H4, in the intervention and `run` as the run whose model they are of."""
    if st.button(label, icon=":material/tune:", help="Build an intervention from it, and see what follows."):
        st.switch_page("views/bench.py", query_params={"run": run.id, "change": ",".join(heads)})
