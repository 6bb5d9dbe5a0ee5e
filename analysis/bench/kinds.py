"""Operations as a form offers them: what each does, when to use it, and its settings with their bounds.

kind = kinds()["weight"]
str(kind.make(span="needle", factor=0.5))           weight(needle, 0.5)
kind_of(operation), values_of(operation)            back again
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import inf
from types import MappingProxyType
from typing import Any, Literal

from analysis.operations import (
    Ablate,
    Boost,
    MoveMass,
    OnSpans,
    Operation,
    Scale,
    ShiftLogits,
    Stream,
    Swap,
    Temperature,
    WeighSpan,
)
from kernels.mechanisms import Mechanism, Parameter, mechanisms
from kernels.rows import KINDS

AS_WRITTEN = "as written"  # the kind of an operation that no form offers
LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "redistribute": "hands attention to a picture, and no task here shows one; headscope hallucinate does",
        "overwrite": "changes the residual stream of whole layers and not a head; write it into the text",
        "swap(frozen)": "needs a pattern that was measured on another prompt, which only Python can give",
        "swap(output_gate)": "is scale(F) where its gate is a number; a trained gate is given in Python",
    }
)


@dataclass(frozen=True)
class Field:
    """One setting. kind: a span of the prompt, a number, a whole number, one of `choices`, or yes and no."""

    name: str
    words: str
    kind: Literal["span", "number", "whole", "choice", "flag"]
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """An operation to choose. make: the operation from the values of its fields; HeadscopeError for wrong ones."""

    name: str
    does: str
    when: str
    make: Callable[..., Operation]
    fields: tuple[Field, ...] = ()

    @property
    def default(self) -> Operation:
        return self.make(**{field.name: field.default for field in self.fields})


SPAN = Field("span", "Span", "span", "0:1")
OFFERED = (
    Kind(
        "query_zero",
        "The head spreads its attention evenly over what it sees.",
        "The ablation of the retrieval-head papers: the head stays loud, and looks nowhere in particular.",
        partial(Ablate, "query_zero"),
    ),
    Kind(
        "query_mean",
        "The head asks what it asks on average over calibration texts.",
        "An ablation that keeps the head within what it usually does (LOCOS); takes a moment for the calibration.",
        partial(Ablate, "query_mean"),
    ),
    Kind(
        "output_zero",
        "The head says nothing.",
        "The strongest ablation: it also takes away what the head writes whatever it looks at.",
        partial(Ablate, "output_zero"),
    ),
    Kind(
        "scale",
        "Multiplies what the head puts out.",
        "To make a head louder or quieter without moving its attention.",
        Scale,
        (Field("factor", "Factor", "number", 0.5),),
    ),
    Kind(
        "temperature",
        "Divides the head's logits.",
        "Below 1 its attention gets sharper, above 1 flatter.",
        Temperature,
        (Field("value", "Temperature", "number", 0.7),),
    ),
    Kind(
        "knock_out",
        "The head can't see the span.",
        "To ask whether a head does its work by looking there.",
        partial(WeighSpan, factor=0.0),
        (SPAN,),
    ),
    Kind(
        "weight",
        "Multiplies the head's attention on a span; the row is made to sum to 1 again unless plain.",
        "To turn attention on a span up or down by degrees.",
        WeighSpan,
        (
            SPAN,
            Field("factor", "Factor", "number", 2.0, low=0.0),
            Field("plain", "Plain: no renormalising", "flag", False),
        ),
    ),
    Kind(
        "shift",
        "Adds to the logits of a span, in nats.",
        "The same as a weight of exp(nats), on the scale in which the head computes.",
        ShiftLogits,
        (SPAN, Field("by", "Nats", "number", -2.0, low=-80.0, high=80.0)),
    ),
    Kind(
        "move",
        "Hands a share of each row's attention on one span to another, in proportion to what that holds.",
        "To take mass off a sink and give it to what matters; a row that gives nothing stays as it is.",
        MoveMass,
        (
            Field("source", "From", "span", "0:1"),
            Field("target", "To", "span", "1:"),
            Field("share", "Share", "number", 0.5, low=0.0, high=1.0),
        ),
    ),
    Kind(
        "boost",
        "Raises the logits of a span by a multiple of their own size.",
        "What PAI and PAINT do to an image; multiply lets negative logits fall, across heads takes the layer's mean.",
        Boost,
        (
            SPAN,
            Field("strength", "Strength", "number", 0.2),
            Field("kind", "Way", "choice", "absolute", choices=tuple(KINDS)),
        ),
    ),
    Kind(
        "stream",
        "The head sees only the first tokens and the latest ones.",
        "To ask whether a head needs the whole context.",
        Stream,
        (
            Field("sink", "First tokens", "whole", 4, low=0),
            Field("window", "Latest tokens", "whole", 128, low=1),
            Field("inside", "Count positions inside that cache", "flag", False),
        ),
    ),
)  # fmt: skip


@cache
def kinds() -> Mapping[str, Kind]:
    """Every operation that the form offers, by name."""
    swaps = [_swap(each) for each in mechanisms() if f"swap({each.name})" not in LEFT_OUT]
    return MappingProxyType({kind.name: kind for kind in (*OFFERED, *swaps)})


def kind_of(operation: Operation) -> str:
    """The name of its kind; AS_WRITTEN where the form doesn't offer it."""
    match operation:
        case Ablate(meaning):
            name: str = meaning
        case WeighSpan(factor=0.0, plain=False):
            name = "knock_out"
        case Swap(mechanism):
            name = f"swap({mechanism})"
        case _:
            name = operation.name
    return name if name in kinds() else AS_WRITTEN


def values_of(operation: Operation) -> dict[str, Any]:
    """The values of its kind's fields."""
    given = dict(operation.settings) if isinstance(operation, Swap) else asdict(operation)
    return {field.name: given.get(field.name, field.default) for field in kinds()[kind_of(operation)].fields}


def takes_queries(operation: Operation) -> bool:
    """Whether it may be limited to some queries."""
    return isinstance(operation, OnSpans)


def _swap(found: Mechanism) -> Kind:
    trained = " Meant to be trained with: here it shows an effect, and not the method." if found.needs_training else ""
    return Kind(
        f"swap({found.name})",
        f"{found.title} in place of softmax.",
        f"{found.paper}.{trained}",
        partial(_swapped, found.name),
        tuple(_field(name, parameter) for name, parameter in found.parameters.items()),
    )


def _swapped(mechanism: str, **settings: float | None) -> Swap:
    return Swap(mechanism, tuple((name, float(value)) for name, value in settings.items() if value is not None))


def _field(name: str, parameter: Parameter) -> Field:
    low, high = (None if abs(bound) == inf else bound for bound in (parameter.low, parameter.high))
    return Field(
        name, f"{name}: {parameter.meaning}", "whole" if parameter.whole else "number", parameter.default, low, high
    )
