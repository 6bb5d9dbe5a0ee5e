"""Interventions as data: what is done to which heads, for which queries, in which phase.

    query_zero @ L17H4, L20H1 in decode                the head spreads evenly over what it sees
    weight(image, 1.3) @ top(vision_mass, 20)          image tokens get 1.3 times the attention, the row renormalised
    weight(needle, 0.2, plain) @ all                   the same without renormalising
    shift(needle, -2) @ L17                            2 nats off the logits
    knock_out(needle) @ L17H4 on generated             generated tokens can't look at the needle
    move(0:1, image, 0.2) @ all on last                a fifth of the sink's mass goes to the image (VAR's form)
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

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, cast, get_args

from analysis.selection import Scores, call, check_selector, needs_scores, select
from kernels.mechanisms import mechanism
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads

Meaning = Literal["query_zero", "query_mean", "output_zero"]
When = Literal["decode", "prefill", "both"]
MEANINGS: tuple[Meaning, ...] = get_args(Meaning)
PHASES: dict[str, frozenset[str]] = {
    "decode": frozenset({"decode"}),
    "prefill": frozenset({"prefill"}),
    "both": frozenset({"prefill", "decode"}),
}
EVERY = "all"
_RANGE = re.compile(r"(-?\d*):(-?\d*)")
_SPAN = re.compile(r"[A-Za-z_][\w.:-]*")
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "number"),
    int: ((int,), "whole number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}


@dataclass(frozen=True)
class Ablate:
    """Silence the head, in one of three meanings."""

    meaning: Meaning

    def __post_init__(self) -> None:
        _one_of("meaning", self.meaning, MEANINGS)

    def __str__(self) -> str:
        return self.meaning


@dataclass(frozen=True)
class Scale:
    """Multiply what the head puts out."""

    factor: float
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        _finite("factor", self.factor)

    def __str__(self) -> str:
        return f"scale({_short(self.factor)})"


@dataclass(frozen=True)
class Temperature:
    """Divide the logits (before any soft-cap; a learned sink's logit stays)."""

    value: float
    name: ClassVar[str] = "temperature"

    def __post_init__(self) -> None:
        if _finite("temperature", self.value) <= 0:
            raise HeadscopeError(f"temperature: {self.value:g} must be above 0.")

    def __str__(self) -> str:
        return f"temperature({_short(self.value)})"


@dataclass(frozen=True)
class WeighSpan:
    """Multiply the attention on a span: 0 knocks it out. plain: rows are not renormalised."""

    span: str
    factor: float
    plain: bool = False
    name: ClassVar[str] = "weight"

    def __post_init__(self) -> None:
        check_positions("span", self.span)
        if _finite("factor", self.factor) < 0:
            raise HeadscopeError(f"factor: {self.factor:g} is negative, and attention can't be.")

    def __str__(self) -> str:
        if self.factor == 0 and not self.plain:
            return f"knock_out({self.span})"
        return f"weight({self.span}, {_short(self.factor)}{', plain' if self.plain else ''})"


@dataclass(frozen=True)
class ShiftLogits:
    """Add to the logits of a span, in nats."""

    span: str
    by: float
    name: ClassVar[str] = "shift"

    def __post_init__(self) -> None:
        check_positions("span", self.span)
        if abs(_finite("by", self.by)) > 80:
            raise HeadscopeError(f"by: {self.by:g} is beyond 80 nats, where float32 ends: use knock_out for -infinity.")

    def __str__(self) -> str:
        return f"shift({self.span}, {_short(self.by)})"


@dataclass(frozen=True)
class MoveMass:
    """Hand a share of each row's attention on one span to another, in proportion to what that holds."""

    source: str
    target: str
    share: float
    name: ClassVar[str] = "move"

    def __post_init__(self) -> None:
        check_positions("source", self.source)
        check_positions("target", self.target)
        if not 0 <= _finite("share", self.share) <= 1:
            raise HeadscopeError(f"share: {self.share:g} is outside 0 to 1.")
        if self.source == self.target:
            raise HeadscopeError(f"target: {self.target!r} is the source too, so nothing would move.")

    def __str__(self) -> str:
        return f"move({self.source}, {self.target}, {_short(self.share)})"


@dataclass(frozen=True)
class Stream:
    """The head sees the first `sink` tokens and the last `window`, its own included.

    inside: positions are counted inside that cache, as in StreamingLLM, and not in the text.
    """

    sink: int
    window: int
    inside: bool = False
    name: ClassVar[str] = "stream"

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise HeadscopeError(f"sink: {self.sink} is negative.")
        if self.window < 1:
            raise HeadscopeError(f"window: {self.window} is below 1, and a token at least sees itself.")

    def __str__(self) -> str:
        return f"stream({self.sink}, {self.window}{', cache' if self.inside else ''})"


@dataclass(frozen=True)
class Swap:
    """Another rule than softmax: a Mechanism by name, with its settings."""

    mechanism: str
    settings: tuple[tuple[str, float], ...] = ()
    name: ClassVar[str] = "swap"

    def __post_init__(self) -> None:
        try:
            mechanism(self.mechanism).settings(dict(self.settings))
        except ValueError as error:
            raise HeadscopeError(f"mechanism: {error}") from None

    def __str__(self) -> str:
        return f"swap({', '.join([self.mechanism, *(f'{key}={_short(value)}' for key, value in self.settings)])})"


@dataclass(frozen=True)
class Overwrite:
    """Behind a layer, set a coordinate of the residual stream where its |x| reaches `above` (0: on every token)."""

    coordinate: int
    value: float
    above: float
    name: ClassVar[str] = "overwrite"

    def __post_init__(self) -> None:
        if self.coordinate < 0:
            raise HeadscopeError(f"coordinate: {self.coordinate} is negative.")
        _finite("value", self.value)
        if _finite("above", self.above) < 0:
            raise HeadscopeError(f"above: {self.above:g} is negative: write 0 to overwrite every token.")

    def __str__(self) -> str:
        return f"overwrite({self.coordinate}, {_short(self.value)}, {_short(self.above)})"


Operation = Ablate | Scale | Temperature | WeighSpan | ShiftLogits | MoveMass | Stream | Swap | Overwrite
_OPERATIONS: dict[str, type[Any]] = {
    kind.name: kind for kind in (Scale, Temperature, WeighSpan, ShiftLogits, MoveMass, Stream, Swap, Overwrite)
} | {"ablate": Ablate}


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
        _one_of("phase", self.phase, tuple(PHASES))
        if self.queries != EVERY and not isinstance(self.operation, WeighSpan | ShiftLogits | MoveMass):
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
        "weight(SPAN, F), knock_out(SPAN), shift(SPAN, NATS), move(SPAN, SPAN, SHARE), stream(SINK, WINDOW), "
        "swap(MECHANISM), overwrite(COORDINATE, VALUE, ABOVE)."
    )


def check_positions(name: str, text: str, *, last: bool = False) -> None:
    """Raises HeadscopeError, naming the field, where a text can name no positions in any prompt."""
    for term in text.split("+"):
        if found := _RANGE.fullmatch(term.strip()):
            if found[1] and found[2] and int(found[1]) >= int(found[2]) and (int(found[1]) < 0) == (int(found[2]) < 0):
                raise HeadscopeError(f"{name}: the range {term} is empty.")
        elif term.strip() == "last" and not last:
            raise HeadscopeError(f"{name}: 'last' names queries, not keys: write -1: for the prompt's last token.")
        elif not _SPAN.fullmatch(term.strip()):
            raise HeadscopeError(
                f"{name}: {term!r} is neither a span, such as needle, nor a range of positions, such as 0:4."
            )


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


def _short(number: float) -> str:
    """The number in as few digits as read back to the same."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def _finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise HeadscopeError(f"{name}: {number} is no finite number.")
    return number


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise HeadscopeError(f"{name}: {value!r} is none of {', '.join(allowed)}.")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as its field's type, from JSON; ValueErrors name the field."""
    if name == "settings" and isinstance(value, Mapping):
        return tuple((str(key), _typed(str(key), number, float)) for key, number in value.items())
    wanted, word = _KINDS.get(kind, _KINDS[str])
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise HeadscopeError(f"{name}: {value!r} is no {word}.")
    return float(cast(float, value)) if kind is float else value
