"""Interventions as data: what is done to which heads, for which queries, in which phase.

    query_zero @ L17H4, L20H1 in decode                the head spreads evenly over what it sees
    weight(image, 1.3) @ top(vision_mass, 20)          image tokens get 1.3 times the attention, the row renormalised
    weight(needle, 0.2, plain) @ all                   the same without renormalising
    shift(needle, -2) @ L17                            2 nats off the logits
    knock_out(needle) @ L17H4 on generated             generated tokens can't look at the needle
    move(0:1, image, 0.2) @ all on last                a fifth of the sink's mass goes to the image (VAR's form)
    boost(image, 0.2) @ L2-29 on last                  logits s on the image += 0.2 |s| (PAI, PAINT)
    boost(image, 1.15, multiply) @ L9-14               logits on the image times 1.15, so that negative ones fall (VAF)
    boost(image, 0.5, across heads) @ L5-17 on last    += 0.5 times the mean of |s| over the layer's heads (Devils)
    redistribute(0:1, image, 0.6) @ all on question+generated
                                                       rows that look at the image hand it 0.6 of what sinks hold (VAR);
                                                       further numbers are the ratio and the floor of such rows
    temperature(0.7) @ L3G1                            logits divided by 0.7
    stream(4, 256) @ bottom(retrieval_score, 50%)      only the first 4 tokens and the last 256
    stream(4, 256, cache) @ all                        the same, with positions counted inside that cache (StreamingLLM)
    scale(0.5) @ L9H0                                  half of what the head puts out
    swap(clipped_softmax, gamma=-0.03) @ L2            another rule in place of softmax (kernels.mechanisms)
    overwrite(507, 0, 100) @ L11                       coordinate 507 of the residual stream, where |x| reaches 100,
                                                       becomes 0 behind layer 11

Several are joined by `;`. `analysis.compiling` makes of them what a Tap applies. An Intervention is frozen, is checked
when it is made, and is the same again after its text or its JSON was read back.

"Ablating a head" means three things in the literature; every result names its own:

query_zero   query := 0, so the head spreads evenly over what it sees (the retrieval-head papers)
query_mean   query before norm and RoPE := its mean over calibration prompts (LOCOS)
output_zero  the head puts out nothing
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, cast

from analysis.operations import (
    MEANINGS,
    Ablate,
    Boost,
    Meaning,
    MoveMass,
    OnSpans,
    Operation,
    Overwrite,
    Redistribute,
    Scale,
    ShiftLogits,
    Stream,
    Swap,
    Temperature,
    WeighSpan,
    check_positions,
    one_of,
)
from analysis.selection import Scores, call, check_selector, needs_scores, select
from kernels.rows import Kind
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads

When = Literal["decode", "prefill", "both"]
EVERY = "all"
PHASES: dict[str, frozenset[str]] = {
    "decode": frozenset({"decode"}),
    "prefill": frozenset({"prefill"}),
    "both": frozenset({"prefill", "decode"}),
}
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "number"),
    int: ((int,), "whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
    int | None: ((int, NoneType), "whole number"),
}


_OPERATIONS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Scale, Temperature, WeighSpan, ShiftLogits, MoveMass, Boost, Redistribute, Stream, Swap, Overwrite,
    )
} | {"ablate": Ablate}  # fmt: skip


@dataclass(frozen=True)
class Intervention:
    """One operation on some heads (a selector, see analysis.selection), for some queries, in one or both phases.

    queries: names of spans, ranges such as 0:4 or -8:, `all`, `generated`, or `last` (the newest token of each
    forward), joined by +.
    """

    operation: Operation
    heads: str
    queries: str = EVERY
    phase: When = "both"

    def __post_init__(self) -> None:
        check_selector(self.heads)
        check_positions("queries", self.queries, last=True)
        one_of("phase", self.phase, tuple(PHASES))
        if self.queries != EVERY and not isinstance(self.operation, OnSpans):
            raise HeadscopeError(f"queries: {self.operation} acts whatever the query; leave out the queries.")

    def __str__(self) -> str:
        queries = "" if self.queries == EVERY else f" on {self.queries}"
        phase = "" if self.phase == "both" else f" in {self.phase}"
        return f"{self.operation} @ {self.heads}{queries}{phase}"

    @property
    def named(self) -> tuple[Head, ...]:
        """Its heads, where the selector is a list of names, as `selected` leaves it."""
        return tuple(parse_heads(self.heads))

    @property
    def needs_scores(self) -> bool:
        return needs_scores(self.heads)

    def selected(
        self, anatomy: Anatomy, scores: Scores | None, protected: frozenset[Head] = frozenset(), seed: int = 0
    ) -> "Intervention":
        """The same with its heads by name."""
        heads = select(self.heads, anatomy, scores, protected=protected, seed=seed)
        if not heads:
            raise HeadscopeError(f"heads: {self.heads} selects none of the model's heads.")
        return replace(self, heads=", ".join(map(str, heads)))

    def to_json(self) -> dict[str, Any]:
        kind = "ablate" if isinstance(self.operation, Ablate) else self.operation.name
        settings = asdict(self.operation)
        if isinstance(self.operation, Swap):
            settings["settings"] = dict(self.operation.settings)
        return {"operation": kind, **settings, "heads": self.heads, "queries": self.queries, "phase": self.phase}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Intervention":
        """Raises HeadscopeError naming the field that is wrong."""
        kind = data.get("operation")
        if kind not in _OPERATIONS:
            raise HeadscopeError(f"operation: {kind!r} is none of {', '.join(sorted(_OPERATIONS))}.")
        own = {each.name: each for each in fields(_OPERATIONS[kind])}
        if unknown := sorted({*data} - {*own} - {"operation", "heads", "queries", "phase"}):
            raise HeadscopeError(f"{unknown[0]}: {kind} has no such field; it has {', '.join(own)}.")
        for name in ("heads", *(name for name, each in own.items() if each.default is MISSING)):
            if name not in data:
                raise HeadscopeError(f"{name}: {kind} needs it.")
        given = {name: _typed(name, data[name], own[name].type) for name in own if name in data}
        for name in ("heads", "queries", "phase"):
            if name in data and not isinstance(data[name], str):
                raise HeadscopeError(f"{name}: {data[name]!r} is no text.")
        rest = {name: data[name] for name in ("queries", "phase") if name in data}
        return cls(_OPERATIONS[kind](**given), data["heads"], **rest)


def ablation(heads: Sequence[Head], meaning: Meaning, phase: When) -> Intervention:
    """Silence these heads."""
    return Intervention(Ablate(meaning), ", ".join(map(str, heads)), phase=phase)


def parse(text: str) -> tuple[Intervention, ...]:
    """Interventions from their text form. Raises HeadscopeError with the part that can't be read."""
    found = tuple(_parse_one(part.strip()) for part in text.split(";") if part.strip())
    if not found:
        raise HeadscopeError("The intervention is empty: write for instance query_zero @ L17H4.")
    return found


def written(interventions: Sequence[Intervention]) -> str:
    """The text form, which `parse` reads back."""
    return "; ".join(map(str, interventions))


def _parse_one(text: str) -> Intervention:
    found = re.fullmatch(r"(?P<what>[^@]+)@(?P<heads>.+?)(?:\s+on\s+(?P<on>\S+))?(?:\s+in\s+(?P<phase>\S+))?", text)
    if not found:
        raise HeadscopeError(f"{text!r} names no heads: write OPERATION @ HEADS, such as query_zero @ L17H4.")
    what, heads = found["what"].strip(), found["heads"].strip()
    phase = cast(When, found["phase"] or "both")  # checked by the Intervention
    return Intervention(_parse_operation(what), heads, found["on"] or EVERY, phase)


def _parse_operation(text: str) -> Operation:
    if text in MEANINGS:
        return Ablate(text)
    taken = call(text)
    name, given = taken if taken else (text, [])
    try:
        match name, given:
            case "scale", [factor]:
                return Scale(_read("factor", factor))
            case "temperature", [value]:
                return Temperature(_read("temperature", value))
            case "knock_out", [span]:
                return WeighSpan(span, 0.0)
            case "weight", [span, factor]:
                return WeighSpan(span, _read("factor", factor))
            case "weight", [span, factor, "plain"]:
                return WeighSpan(span, _read("factor", factor), plain=True)
            case "shift", [span, by]:
                return ShiftLogits(span, _read("by", by))
            case "move", [source, target, share]:
                return MoveMass(source, target, _read("share", share))
            case "boost", [span, strength]:
                return Boost(span, _read("strength", strength))
            case "boost", [span, strength, kind]:
                return Boost(span, _read("strength", strength), cast(Kind, kind))  # checked by the Boost
            case "redistribute", [sinks, image, give, *rest] if len(rest) <= 3:
                return _read_redistribution(sinks, image, give, rest)
            case "stream", [sink, window]:
                return Stream(int(sink), int(window))
            case "stream", [sink, window, "cache"]:
                return Stream(int(sink), int(window), inside=True)
            case "overwrite", [coordinate, value, above]:
                return Overwrite(_whole("coordinate", coordinate), _read("value", value), _read("above", above))
            case "swap", [rule, *settings]:
                pairs = [setting.partition("=") for setting in settings]
                return Swap(rule, tuple((key.strip(), _read(key.strip(), value)) for key, _, value in pairs))
    except ValueError:
        raise HeadscopeError(f"operation: {text!r} takes whole numbers, such as stream(4, 256).") from None
    raise HeadscopeError(
        f"operation: {text!r} is none of query_zero, query_mean, output_zero, scale(F), temperature(T), "
        "weight(SPAN, F), knock_out(SPAN), shift(SPAN, NATS), move(SPAN, SPAN, SHARE), boost(SPAN, STRENGTH), "
        "redistribute(SINKS, IMAGE, GIVE), stream(SINK, WINDOW), swap(MECHANISM), overwrite(COORDINATE, VALUE, ABOVE)."
    )


def _read_redistribution(sinks: str, image: str, give: str, rest: Sequence[str]) -> Redistribute:
    names = ("ratio", "floor")
    numbers = list(rest)
    shuffle = None
    if numbers and numbers[-1].startswith("shuffle="):
        shuffle = _whole("shuffle", numbers.pop().removeprefix("shuffle="))
    if len(numbers) > len(names):
        raise HeadscopeError(f"operation: redistribute takes a ratio and a floor, and {numbers[-1]!r} is one too many.")
    given = {name: _read(name, number) for name, number in zip(names, numbers, strict=False)}
    return Redistribute(sinks, image, _read("give", give), **given, shuffle=shuffle)


def _read(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HeadscopeError(f"{name}: {text!r} is no number.") from None


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise HeadscopeError(f"{name}: {text!r} is no whole number.") from None


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as its field's type, from JSON; ValueErrors name the field."""
    if name == "settings" and isinstance(value, Mapping):
        return tuple((str(key), _typed(str(key), number, float)) for key, number in value.items())
    wanted, word = _KINDS.get(kind, _KINDS[str])
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise HeadscopeError(f"{name}: {value!r} is no {word}.")
    return float(cast(float, value)) if kind is float else value
