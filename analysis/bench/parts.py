"""An intervention in its parts, each of which a form can hold: OPERATION @ HEADS on QUERIES in PHASE; MORE.

parts_of("knock_out(needle) @ L3H1 in decode").text is the text again.
"""

import re
from dataclasses import dataclass

from analysis.interventions import EVERY, parse, written
from analysis.operations import Operation

PHASES = ("both", "prefill", "decode")
_NAMES = re.compile(r"[\w.-]+(?:[\s,;]+[\w.-]+)*[\s,;]*")


@dataclass(frozen=True)
class Parts:
    """The first intervention of a text taken apart; more: the text of the others."""

    heads: str
    operation: str = "query_zero"
    queries: str = EVERY
    phase: str = "both"
    more: str = ""

    @property
    def text(self) -> str:
        queries = "" if self.queries == EVERY else f" on {self.queries}"
        phase = "" if self.phase == "both" else f" in {self.phase}"
        return "; ".join(part for part in (f"{self.operation} @ {self.heads}{queries}{phase}", self.more) if part)


def parts_of(text: str) -> Parts:
    """Raises HeadscopeError with what of the text can't be read."""
    first, *others = parse(text)
    return Parts(first.heads, str(first.operation), first.queries, first.phase, written(others))


def read_operation(text: str) -> Operation:
    """Raises HeadscopeError where it is none."""
    return parse(f"{text} @ {EVERY}")[0].operation


def named(text: str) -> str:
    """Names of heads that were typed with spaces or commas between them, as a selector; any other text as it is."""
    return ", ".join(re.split(r"[\s,;]+", text.strip(" \t\n,;"))) if _NAMES.fullmatch(text.strip()) else text.strip()
