"""From interventions to a Plan: for one model and one prompt, whose spans become positions.

    plan = compile_plan(subject.anatomy, parse("knock_out(needle) @ L17H4"), prompt)

What a model can't honour, and operations that contradict each other on one head, are refused by name.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from analysis import operations as what
from analysis.interventions import EVERY, PHASES, Intervention
from analysis.selection import Scores, select
from kernels.rows import neutral_strength
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.layer_plan import LayerPlan
from probes.plan import Plan
from probes.plan_parts import Boost, MassMove, Overwrite, Positions, Redistribution, SpanWeight, Streaming, Swap
from probes.prompt import Prompt
from probes.rotary import check_turns

SEEDS_APART = 1000
"""More than a model has layers, so that no two layers of no two seeds share an order of heads."""


def compile_plan(
    anatomy: Anatomy,
    interventions: Sequence[Intervention],
    prompt: Prompt | None = None,
    *,
    means: Mapping[int, Tensor] | None = None,
    scores: Scores | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """A Plan of one row, for every row of a batch alike.

    prompt: needed where an operation names positions. means: per layer (heads, head size), needed by query_mean.
    scores: needed where heads are selected by a metric.
    """
    chosen = [(each, select(each.heads, anatomy, scores)) for each in interventions]
    for each, heads in chosen:
        if isinstance(each.operation, what.Overwrite):
            _check_overwrite(anatomy, each.operation, heads)
    plan: dict[str, dict[int, LayerPlan]] = {}
    for phase in ("prefill", "decode"):
        acting = [(each, heads) for each, heads in chosen if phase in PHASES[each.phase]]
        _check_contradictions(acting)
        layers = sorted({head.layer for _, heads in acting for head in heads})
        plan[phase] = {layer: _layer(anatomy, layer, acting, prompt, means, device) for layer in layers}
    return Plan(plan["prefill"], plan["decode"])


def _layer(
    anatomy: Anatomy,
    layer: int,
    acting: Sequence[tuple[Intervention, tuple[Head, ...]]],
    prompt: Prompt | None,
    means: Mapping[int, Tensor] | None,
    device: torch.device | str,
) -> LayerPlan:
    step = LayerPlan()
    for each, heads in acting:
        mine = torch.zeros(1, anatomy.query_heads, dtype=torch.bool)
        mine[0, [head.head for head in heads if head.layer == layer]] = True
        if mine.any():
            if isinstance(each.operation, what.Stream) and each.operation.inside:
                check_turns(anatomy.decoder[layer])
            step = _added(step, each, mine.to(device), layer, prompt, means)
    return step


def _added(
    step: LayerPlan,
    each: Intervention,
    mine: Tensor,
    layer: int,
    prompt: Prompt | None,
    means: Mapping[int, Tensor] | None,
) -> LayerPlan:
    """The step with one more operation on the heads `mine`, (1, heads)."""

    def positions(field: str, text: str) -> Positions:
        return _positions(field, text, prompt, mine.device)

    def times(before: Tensor | None, factor: float) -> Tensor:
        own = torch.where(mine, factor, 1.0)
        return own if before is None else before * own

    match each.operation:
        case what.Ablate("query_zero"):
            return replace(step, query_scale=times(step.query_scale, 0.0))
        case what.Ablate("output_zero"):
            return replace(step, output_scale=times(step.output_scale, 0.0))
        case what.Ablate():
            if means is None or layer not in means:
                raise HeadscopeError("query_mean needs the mean queries of calibration prompts.")
            filled = mine if step.query_filled is None else step.query_filled | mine
            return replace(step, query_filled=filled, query_fill=means[layer].to(mine.device))
        case what.Scale(factor):
            return replace(step, output_scale=times(step.output_scale, factor))
        case what.Temperature(value):
            return replace(step, query_scale=times(step.query_scale, 1 / value))
        case what.WeighSpan(span, factor, plain):
            weight = SpanWeight(
                positions("span", span), positions("queries", each.queries), torch.where(mine, factor, 1.0), not plain
            )
            return replace(step, weights=(*step.weights, weight))
        case what.ShiftLogits(span, by):
            shift = SpanWeight(
                positions("span", span), positions("queries", each.queries), torch.where(mine, math.exp(by), 1.0)
            )
            return replace(step, weights=(*step.weights, shift))
        case what.MoveMass(source, target, share):
            move = MassMove(
                positions("source", source),
                positions("target", target),
                positions("queries", each.queries),
                torch.where(mine, share, 0.0),
            )
            return replace(step, moves=(*step.moves, move))
        case what.Boost(span, strength, kind):
            boost = Boost(
                positions("span", span),
                positions("queries", each.queries),
                torch.where(mine, strength, neutral_strength(kind)),
                kind,
            )
            return replace(step, boosts=(*step.boosts, boost))
        case what.Redistribute(sinks, image, give, ratio, floor, shuffle):
            redistribution = Redistribution(
                positions("sinks", sinks),
                positions("image", image),
                positions("queries", each.queries),
                mine,
                give,
                ratio,
                floor,
                # Each layer its own order of heads.
                None if shuffle is None else SEEDS_APART * shuffle + layer,
            )
            return replace(step, redistributions=(*step.redistributions, redistribution))
        case what.Stream(sink, window, inside):
            return replace(step, streams=(*step.streams, Streaming(mine, sink, window, inside)))
        case what.Swap(rule, settings):
            return replace(step, swaps=(*step.swaps, Swap(mine, rule, dict(settings))))
        case what.Overwrite(coordinate, value, above):
            everywhere = torch.ones(1, dtype=torch.bool, device=mine.device)
            return replace(step, overwrites=(*step.overwrites, Overwrite(everywhere, coordinate, value, above)))


def _positions(field: str, text: str, prompt: Prompt | None, device: torch.device | str) -> Positions:
    if text == EVERY:
        return Positions(torch.zeros(1, 0, dtype=torch.bool, device=device), beyond=True)
    if prompt is None:
        if text == "last":
            return Positions(torch.zeros(1, 0, dtype=torch.bool, device=device), newest=True)
        raise HeadscopeError(f"{field}: {text!r} can only be found in a prompt.")
    n = len(prompt)
    table = torch.zeros(1, n, dtype=torch.bool)
    beyond = newest = False
    for term in (term.strip() for term in text.split("+")):
        if term == EVERY:
            table[:], beyond = True, True
        elif term == "generated":
            beyond = True
        elif term == "last":
            newest = True
        elif ":" in term and not any(character.isalpha() for character in term):
            first, _, end = term.partition(":")
            places = range(n)[slice(int(first) if first else None, int(end) if end else None)]
            if not places:
                raise HeadscopeError(f"{field}: the range {term} holds no token of this prompt, which has {n}.")
            table[0, list(places)] = True
        elif term in prompt.spans:
            table[0, list(prompt.spans[term])] = True
        else:
            known = ", ".join(prompt.spans) or "none"
            raise HeadscopeError(f"{field}: this prompt has no span {term!r}; it has {known}.")
    return Positions(table.to(device), beyond, newest)


def _check_overwrite(anatomy: Anatomy, operation: what.Overwrite, heads: Sequence[Head]) -> None:
    if any(count < anatomy.query_heads for count in Counter(head.layer for head in heads).values()):
        raise HeadscopeError("heads: overwrite acts on a layer's residual stream: name layers such as L4.")
    if operation.coordinate >= anatomy.hidden:
        raise HeadscopeError(
            f"coordinate: {operation.coordinate} is beyond this model's residual stream, which has coordinates 0 to "
            f"{anatomy.hidden - 1}."
        )


_QUERY = ("query_zero", "query_mean")


def _check_contradictions(acting: Sequence[tuple[Intervention, tuple[Head, ...]]]) -> None:
    """Raises HeadscopeError, naming a head, for operations of which one would undo or hide another."""
    by_head: dict[Head, list[Intervention]] = {}
    for each, heads in acting:
        for head in heads:
            by_head.setdefault(head, []).append(each)
    for head, each_one in by_head.items():
        for first, second in combinations(each_one, 2):
            if reason := _clash(first, second) or _clash(second, first):
                raise HeadscopeError(
                    f"operation: {first.operation} and {second.operation} contradict each other on {head}: {reason}."
                )


def _clash(one: Intervention, other: Intervention) -> str | None:
    rows = (what.Boost, what.Redistribute)
    weights = (what.WeighSpan, what.ShiftLogits, what.MoveMass, what.Stream)
    first: Any = one.operation
    second: Any = other.operation
    match first, second:
        case what.Overwrite(a), what.Overwrite(b) if a == b:
            return "a coordinate is overwritten once"
        case (what.Overwrite(), _) | (_, what.Overwrite()):
            return None
        case what.Ablate("output_zero"), _:
            return "a head that says nothing can't be changed otherwise"
        case what.Ablate(a), what.Ablate(b) if a != b:
            return "a head is silenced in one way"
        case what.Ablate(a), what.Temperature() if a in _QUERY:
            return "the query it would scale is replaced"
        case what.Swap(), what.Swap():
            return "a head follows one rule"
        case what.Swap(), _ if isinstance(second, weights + rows):
            return "the mechanism has weights of its own"
        case _ if isinstance(first, rows) and isinstance(second, weights):
            return "rows that are rewritten are computed anew, and would know nothing of the other"
        case what.WeighSpan(a, 0.0), what.WeighSpan(b) | what.ShiftLogits(b) if a == b and one.queries == other.queries:
            return "a span that is knocked out has no weight to change"
        case what.Stream(), what.Stream() if first != second:
            return "a head streams in one way"
    return None
