"""The heads of a layer as small maps."""

from functools import partial

from analysis.maps.thumbnails import SIDE, thumbnails
from analysis.runs import Run
from probes.heads import Head
from views.address import show
from views.head_strip import head_strip


def strip(run: Run, head: Head) -> None:
    """Every head of this head's layer; this one is outlined."""
    head_strip(thumbnails(run, head.layer), head, partial(show, "head"), side=SIDE)
