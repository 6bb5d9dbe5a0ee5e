"""The heads of a layer as small pictures of where each of them looks."""

from collections.abc import Mapping

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from analysis.vision.overlay import SIDE, miniature
from analysis.vision.showing import Look
from probes.heads import Head
from views.address import show
from views.head_strip import head_strip


def strip(
    looks: Mapping[Head, Look], pixels: NDArray[np.uint8], patches: NDArray[np.float32], chosen: Head, *, alone: bool
) -> None:
    """looks: of every head of the layer, at these patches. alone: no other head than the chosen one is shown above."""
    st.markdown(f"**The {len(looks)} heads of layer {chosen.layer}**")
    head_strip(
        {head: miniature(pixels, patches, look.attention) for head, look in looks.items()},
        chosen if alone else None, _choose, side=SIDE, kind="jpeg",
        words=lambda head: f"{head}, {looks[head].whole:.0%}",
    )  # fmt: skip
    st.caption(
        "The same token, each head in colours of its own, from nothing to its strongest patch; below, the share of its "
        "attention on these patches. Click one to choose it."
    )


def _choose(head: str) -> None:
    show("head", head)
    show("whose", "head")
