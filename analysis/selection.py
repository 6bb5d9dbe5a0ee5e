"""Which heads? Selectors as text: by name, by layer, by KV group, by a metric, at random with a control's care.

    L17H4, L20H1            two heads                  top(retrieval_score, 10)       the ten strongest
    L17, L3-8               layers                     top(retrieval_score, 5%)       the strongest 5 %
    L17G1                   a KV group                 top(retrieval_score, 2/layer)  two in each layer
    all                     every head                 above(retrieval_score, 0.1)    at least 0.1
    random(top(...), 3)     as many others of the      bottom(...), below(...)        the same from below
                            same layers, draw 3
    not(...)                all but these              random_groups(25%, 3)          as many groups, draw 3
    top_groups(retrieval_score, 25%)                   KV groups whose strongest head is strongest

Joined by commas they make a union.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from probes.errors import HeadscopeError
from probes.heads import Head, check_heads, parse_head

_LAYERS = re.compile(r"L(\d+)(?:-(\d+))?", re.IGNORECASE)
_GROUP = re.compile(r"L(\d+)G(\d+)", re.IGNORECASE)
_CALL = re.compile(r"([a-z_]+)\s*\((.*)\)", re.DOTALL)
RANKING = ("retrieval", "patch")  # the commands whose runs score every head
BY_METRIC = ("top", "bottom", "above", "below", "top_groups")


class Heads(Protocol):
    """What a selector must know of a model: an Anatomy."""

    @property
    def layers(self) -> int: ...
    @property
    def query_heads(self) -> int: ...
    def heads(self) -> list[Head]: ...
    def group(self, layer: int, group: int) -> list[Head]: ...
    def groups(self) -> list[list[Head]]: ...


@dataclass(frozen=True)
class Scores:
    """Metrics of every head: columns layer, head, metric, value, as in a run's heads.parquet.

    ties: the metric that ranks heads which are equal in the one asked for.
    """

    frame: pd.DataFrame
    ties: str | None = None

    def values(self, metric: str) -> dict[Head, tuple[float, float]]:
        """Raises HeadscopeError for a metric that was not measured."""
        known = sorted(self.frame["metric"].unique())
        if metric not in known:
            raise HeadscopeError(f"heads: there is no metric {metric!r} in the run: choose among {', '.join(known)}.")
        second = self._column(self.ties) if self.ties in known else {}
        return {head: (value, second.get(head, 0.0)) for head, value in self._column(metric).items()}

    def _column(self, metric: str | None) -> dict[Head, float]:
        rows = self.frame[self.frame["metric"] == metric]
        triples = zip(rows["layer"], rows["head"], rows["value"], strict=True)
        return {Head(int(layer), int(head)): float(value) for layer, head, value in triples}


def arguments(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            break
        if character == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    if depth:
        raise HeadscopeError(f"The brackets of {text!r} do not match.")
    last = text[start:].strip()
    return [*parts, last] if parts or last else []


def call(text: str) -> tuple[str, list[str]] | None:
    """`name(first, second)` taken apart; None where the text is not of that form."""
    found = _CALL.fullmatch(text.strip())
    return (found[1], arguments(found[2])) if found else None


def check_selector(text: str) -> None:
    """Raises HeadscopeError where a selector could select in no model."""
    terms = arguments(text)
    if not terms or not all(terms):
        raise HeadscopeError(f"heads: {text!r} names no head: write L17H4,L20H1 or top(retrieval_score, 10).")
    for term in terms:
        match call(term):
            case None:
                if term != "all" and not _LAYERS.fullmatch(term) and not _GROUP.fullmatch(term):
                    _named(term)
            case (("top" | "bottom" | "top_groups"), [_, size]):
                _size(size)
            case ("random_groups", [size, number]):
                _size(size)
                _draw(term, number)
            case (("above" | "below"), [_, number]):
                _number(number)
            case ("random", [inner, number]):
                check_selector(inner)
                _draw(term, number)
            case ("not", [*inner]) if inner:
                check_selector(", ".join(inner))
            case (name, given):
                raise HeadscopeError(
                    f"heads: {name}({', '.join(given)}) is no selector: use top, bottom, above, below, top_groups (a "
                    "metric and a number), random (a selector and the number of a draw), random_groups (a number and "
                    "that of a draw) or not (a selector)."
                )


def needs_scores(text: str) -> bool:
    """Whether the selector asks for a metric, which a run must have measured."""
    found = [call(term) for term in arguments(text)]
    return any(each is not None and (each[0] in BY_METRIC or any(map(needs_scores, each[1]))) for each in found)


def select(
    text: str, anatomy: Heads, scores: Scores | None = None, *, protected: frozenset[Head] = frozenset(), seed: int = 0
) -> tuple[Head, ...]:
    """The heads that a selector names in a model, in order of layer and head.

    protected: heads that random(...) never draws. Raises HeadscopeError naming heads where the model has none such, or
    where a metric is asked for without scores.
    """
    check_selector(text)
    chosen: set[Head] = set()
    for term in arguments(text):
        chosen |= set(_term(term, anatomy, scores, protected, seed))
    return tuple(sorted(chosen))


def _term(term: str, anatomy: Heads, scores: Scores | None, protected: frozenset[Head], seed: int) -> Sequence[Head]:
    if term == "all":
        return anatomy.heads()
    if found := _GROUP.fullmatch(term):
        return anatomy.group(int(found[1]), int(found[2]))
    if found := _LAYERS.fullmatch(term):
        first, last = int(found[1]), int(found[2] or found[1])
        if last >= anatomy.layers or first > last:
            raise HeadscopeError(f"heads: {term} does not exist: this model has layers 0 to {anatomy.layers - 1}.")
        return [head for head in anatomy.heads() if first <= head.layer <= last]
    taken = call(term)
    if taken is None:
        head = _named(term)
        check_heads([head], anatomy.layers, anatomy.query_heads)
        return [head]
    name, given = taken
    if name == "random":
        inner = select(given[0], anatomy, scores, protected=protected, seed=seed)
        draw = random.Random(f"{seed}/{len(inner)}/{int(given[1])}")
        return matched_control(inner, anatomy.heads(), protected, draw=draw)
    if name == "not":
        inner = select(", ".join(given), anatomy, scores, protected=protected, seed=seed)
        return sorted(set(anatomy.heads()) - set(inner))
    if name == "random_groups":
        groups = anatomy.groups()
        draw = random.Random(f"{seed}/{given[0]}/{int(given[1])}")
        return [head for group in draw.sample(groups, _count(term, given[0], len(groups))) for head in group]
    if scores is None:
        raise HeadscopeError(f"heads: {term} needs a run that measured {given[0]}: name one with --heads-from.")
    if name == "top_groups":
        values = scores.values(given[0])
        strongest = sorted(anatomy.groups(), key=lambda group: max(values[head] for head in group), reverse=True)
        return [head for group in strongest[: _count(term, given[1], len(strongest))] for head in group]
    return _by_metric(name, given[0], given[1], scores)


def _by_metric(name: str, metric: str, size: str, scores: Scores) -> list[Head]:
    values = scores.values(metric)
    if name in ("above", "below"):
        limit = _number(size)
        keep: Callable[[float], bool] = (lambda x: x >= limit) if name == "above" else (lambda x: x < limit)
        return [head for head, (value, _) in values.items() if keep(value)]
    sign = -1 if name == "top" else 1
    ranked = sorted(values, key=lambda head: (sign * values[head][0], sign * values[head][1], head))
    count, unit = _size(size)
    if unit == "/layer":
        layers = sorted({head.layer for head in ranked})
        return [head for layer in layers for head in [h for h in ranked if h.layer == layer][: int(count)]]
    return ranked[: _count(f"{name}({metric}, {size})", size, len(ranked))]


def _named(term: str) -> Head:
    try:
        return parse_head(term)
    except HeadscopeError as error:
        raise HeadscopeError(f"heads: {error}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HeadscopeError(f"heads: {text!r} is no number.") from None


def _draw(term: str, number: str) -> None:
    if not number.isdigit():
        raise HeadscopeError(f"heads: {term!r} must end in the number of its draw, such as 0.")


def _count(term: str, size: str, most: int) -> int:
    """How many of `most` heads or groups a size means."""
    count, unit = _size(size)
    wanted = round(count / 100 * most) if unit == "%" else int(count)
    if wanted > most:
        raise HeadscopeError(f"heads: {term} asks for more than the model's {most}.")
    return wanted


def _size(text: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|/layer)?", text.strip())
    if (
        not found
        or (found[2] != "%" and not float(found[1]).is_integer())
        or (found[2] == "%" and float(found[1]) > 100)
    ):
        raise HeadscopeError(f"heads: {text!r} is no number of heads: write 10, 5% or 2/layer.")
    return float(found[1]), found[2] or ""


def matched_control(
    chosen: Sequence[Head], every: Sequence[Head], protected: frozenset[Head], *, draw: random.Random
) -> tuple[Head, ...]:
    """As many random heads as `chosen`, per layer where the layer has enough; the rest from the nearest layers."""
    free = sorted(set(every) - set(chosen) - protected)
    if len(free) < len(chosen):
        raise HeadscopeError(
            f"A control for {len(chosen)} heads needs as many others, and only {len(free)} are neither ablated nor "
            "retrieval heads: choose a smaller K."
        )
    control: list[Head] = []
    lacking: list[int] = []
    for layer, wanted in sorted(Counter(head.layer for head in chosen).items()):
        own = [head for head in free if head.layer == layer]
        control += draw.sample(own, min(wanted, len(own)))
        lacking += [layer] * (wanted - len(own))
    for layer in lacking:
        left = [head for head in free if head not in control]
        nearest = min(abs(head.layer - layer) for head in left)
        control.append(draw.choice([head for head in left if abs(head.layer - layer) == nearest]))
    return tuple(sorted(control))
