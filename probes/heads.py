"""Names of heads: `L17H4` is layer 17, head 4, both counted from 0; `vision.L3H2` is a head of the vision tower."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from probes.errors import HeadscopeError

_NAME = re.compile(r"(?:(?P<stack>[a-z]+)\.)?L(?P<layer>\d+)H(?P<head>\d+)", re.IGNORECASE)


class Head(NamedTuple):
    """One attention head. Sorts by layer, then head."""

    layer: int
    head: int
    stack: str = ""

    def __str__(self) -> str:
        prefix = f"{self.stack}." if self.stack else ""
        return f"{prefix}L{self.layer}H{self.head}"

    @property
    def key(self) -> str:
        """`layer-head`, as the JSON files of the retrieval-head authors name it."""
        return f"{self.layer}-{self.head}"


def parse_head(name: str) -> Head:
    """`L17H4` or the authors' `17-4`. Raises HeadscopeError on anything else."""
    if found := _NAME.fullmatch(name.strip()):
        return Head(int(found["layer"]), int(found["head"]), (found["stack"] or "").lower())
    if found := re.fullmatch(r"(\d+)-(\d+)", name.strip()):
        return Head(int(found[1]), int(found[2]))
    raise HeadscopeError(f"{name!r} is not the name of a head: write L17H4 for layer 17, head 4 (both from 0).")


def parse_heads(names: str) -> list[Head]:
    """A comma-separated list of head names, each head once. Raises HeadscopeError where it names none."""
    found = list(dict.fromkeys(parse_head(name) for name in names.split(",") if name.strip()))
    if not found:
        raise HeadscopeError(f"{names!r} names no head: write L17H4,L20H1.")
    return found


def check_heads(heads: Iterable[Head], layers: int, heads_per_layer: int) -> None:
    """Raises HeadscopeError for a head that the model does not have."""
    for head in heads:
        if head.stack:
            raise HeadscopeError(
                f"{head} is a head of a tower beside the decoder, and only decoder heads can be changed."
            )
        if head.layer >= layers or head.head >= heads_per_layer:
            raise HeadscopeError(
                f"{head} does not exist: this model has layers 0 to {layers - 1} and heads 0 to {heads_per_layer - 1}."
            )
