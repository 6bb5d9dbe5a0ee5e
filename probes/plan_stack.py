"""Plans of single rows made one plan for a batch: each row is changed as it would be alone."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from probes.errors import HeadscopeError
from probes.layer_plan import LayerPlan
from probes.plan_parts import Boost, Positions, Redistribution

_Part = TypeVar("_Part", bound=Boost | Redistribution)


def stack_layers(rows: Sequence[Mapping[int, LayerPlan]]) -> dict[int, LayerPlan]:
    """By layer, of plans of one row each.

    Raises HeadscopeError where two of them replace queries of one layer by different ones.
    """
    touched = sorted({layer for row in rows for layer in row})
    return {layer: _stacked([row.get(layer, LayerPlan()) for row in rows]) for layer in touched}


def _stacked(steps: Sequence[LayerPlan]) -> LayerPlan:
    def together(tensors: Sequence[Tensor | None], otherwise: Any) -> Tensor | None:
        given = next((tensor for tensor in tensors if tensor is not None), None)
        if given is None:
            return None
        rest = torch.full_like(given[:1], otherwise)
        return torch.cat([rest if tensor is None else tensor for tensor in tensors])

    def alone(row: int, own: Tensor, otherwise: Any) -> Tensor:
        """What acts in one row, as a part for all rows that leaves the others as they are."""
        return torch.cat([own if i == row else torch.full_like(own, otherwise) for i in range(len(steps))])

    fills = [step.query_fill for step in steps if step.query_fill is not None]
    if any(not torch.equal(fill, fills[0]) for fill in fills):
        raise HeadscopeError("Rows of one batch can't replace the queries of a layer by different ones.")
    rows = list(enumerate(steps))
    return LayerPlan(
        query_scale=together([step.query_scale for step in steps], 1.0),
        query_filled=together([step.query_filled for step in steps], False),
        query_fill=fills[0] if fills else None,
        swaps=tuple(replace(x, heads=alone(i, x.heads, False)) for i, step in rows for x in step.swaps),
        weights=tuple(replace(x, factor=alone(i, x.factor, 1.0)) for i, step in rows for x in step.weights),
        moves=tuple(replace(x, share=alone(i, x.share, 0.0)) for i, step in rows for x in step.moves),
        streams=tuple(replace(x, heads=alone(i, x.heads, False)) for i, step in rows for x in step.streams),
        boosts=_side_by_side([step.boosts for step in steps]),
        redistributions=_side_by_side([step.redistributions for step in steps]),
        output_scale=together([step.output_scale for step in steps], 1.0),
        overwrites=tuple(replace(x, rows=alone(i, x.rows, False)) for i, step in rows for x in step.overwrites),
    )


def _side_by_side(rows: Sequence[tuple[_Part, ...]]) -> tuple[_Part, ...]:
    """Of each row's parts those that differ in tensors alone as one, in the order in which a row has them.

    A part for each row would have every row compute all of them.
    """
    alike: dict[tuple[Any, ...], dict[int, _Part]] = {}
    for row, parts in enumerate(rows):
        for place, part in enumerate(parts):
            alike.setdefault((place, *_settings(part)), {})[row] = part
    in_order = sorted(alike.items(), key=lambda each: each[0][0])
    return tuple(_one_part(own, len(rows)) for _, own in in_order)


def _settings(part: Boost | Redistribution) -> tuple[Any, ...]:
    values = (getattr(part, each.name) for each in fields(part))
    settings = ((value.beyond, value.newest) if isinstance(value, Positions) else value for value in values)
    return tuple(value for value in settings if not isinstance(value, Tensor))


def _one_part(own: Mapping[int, _Part], rows: int) -> _Part:
    """The part of each row, where it has one; the others are left as they are."""
    first = next(iter(own.values()))
    neutral = first.neutral if isinstance(first, Boost) else False
    changes: dict[str, Any] = {}
    for name in (each.name for each in fields(first)):
        values = {row: getattr(part, name) for row, part in own.items()}
        given = getattr(first, name)
        if isinstance(given, Positions):
            changes[name] = _positions_of_rows(values, rows)
        elif isinstance(given, Tensor):
            changes[name] = torch.cat([values.get(row, torch.full_like(given, neutral)) for row in range(rows)])
    return replace(first, **changes)


def _positions_of_rows(own: Mapping[int, Positions], rows: int) -> Positions:
    first = next(iter(own.values()))
    table = first.table.new_full((rows, max(each.table.shape[1] for each in own.values())), first.beyond)
    for row, each in own.items():
        table[row, : each.table.shape[1]] = each.table[0]
    return replace(first, table=table)
