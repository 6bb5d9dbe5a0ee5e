"""What an intervention does to a head, as data that is checked when it is made; its text is what `parse` reads back.

`analysis.interventions` says in its first lines what each is for.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from kernels.mechanisms import mechanism
from kernels.rows import KINDS, Kind
from probes.errors import HeadscopeError

Meaning = Literal["query_zero", "query_mean", "output_zero"]
MEANINGS: tuple[Meaning, ...] = get_args(Meaning)
IMAGE_CENTRIC_RATIO = 0.8
"""rho of Kang et al. (ICLR 2025) for general tasks; 0.5 against hallucination, 0.9 for what needs vision."""
IMAGE_FLOOR = 0.2
"""Their least mass on the image of a row that is looked at."""
_RANGE = re.compile(r"(-?\d*):(-?\d*)")
_SPAN = re.compile(r"[A-Za-z_][\w.:-]*")


@dataclass(frozen=True)
class Ablate:
    """Silence the head, in one of three meanings."""

    meaning: Meaning

    def __post_init__(self) -> None:
        one_of("meaning", self.meaning, MEANINGS)

    def __str__(self) -> str:
        return self.meaning


@dataclass(frozen=True)
class Scale:
    """Multiply what the head puts out."""

    factor: float
    name: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        finite("factor", self.factor)

    def __str__(self) -> str:
        return f"scale({short(self.factor)})"


@dataclass(frozen=True)
class Temperature:
    """Divide the logits (before any soft-cap; a learned sink's logit stays)."""

    value: float
    name: ClassVar[str] = "temperature"

    def __post_init__(self) -> None:
        if finite("temperature", self.value) <= 0:
            raise HeadscopeError(f"temperature: {self.value:g} must be above 0.")

    def __str__(self) -> str:
        return f"temperature({short(self.value)})"


@dataclass(frozen=True)
class WeighSpan:
    """Multiply the attention on a span: 0 knocks it out. plain: rows are not renormalised."""

    span: str
    factor: float
    plain: bool = False
    name: ClassVar[str] = "weight"

    def __post_init__(self) -> None:
        check_positions("span", self.span)
        if finite("factor", self.factor) < 0:
            raise HeadscopeError(f"factor: {self.factor:g} is negative, and attention can't be.")

    def __str__(self) -> str:
        if self.factor == 0 and not self.plain:
            return f"knock_out({self.span})"
        return f"weight({self.span}, {short(self.factor)}{', plain' if self.plain else ''})"


@dataclass(frozen=True)
class ShiftLogits:
    """Add to the logits of a span, in nats."""

    span: str
    by: float
    name: ClassVar[str] = "shift"

    def __post_init__(self) -> None:
        check_positions("span", self.span)
        if abs(finite("by", self.by)) > 80:
            raise HeadscopeError(f"by: {self.by:g} is beyond 80 nats, where float32 ends: use knock_out for -infinity.")

    def __str__(self) -> str:
        return f"shift({self.span}, {short(self.by)})"


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
        if not 0 <= finite("share", self.share) <= 1:
            raise HeadscopeError(f"share: {self.share:g} is outside 0 to 1.")
        if self.source == self.target:
            raise HeadscopeError(f"target: {self.target!r} is the source too, so nothing would move.")

    def __str__(self) -> str:
        return f"move({self.source}, {self.target}, {short(self.share)})"


@dataclass(frozen=True)
class Boost:
    """Boost the logits of a span, in one of the three ways of kernels.rows.Boost."""

    span: str
    strength: float
    kind: Kind = "absolute"
    name: ClassVar[str] = "boost"

    def __post_init__(self) -> None:
        check_positions("span", self.span)
        one_of("kind", self.kind, KINDS)
        if finite("strength", self.strength) < 0 and self.kind == "multiply":
            raise HeadscopeError(f"strength: {self.strength:g} is negative, and would turn the logits' signs.")

    def __str__(self) -> str:
        return f"boost({self.span}, {short(self.strength)}{'' if self.kind == 'absolute' else f', {self.kind}'})"


@dataclass(frozen=True)
class Redistribute:
    """Image-centric rows hand a share of what sinks hold to the rest of the image: kernels.rows.Redistribution.

    shuffle: seed of the control whose heads are rewritten where other heads are image-centric.
    """

    sinks: str
    image: str
    give: float
    ratio: float = IMAGE_CENTRIC_RATIO
    floor: float = IMAGE_FLOOR
    shuffle: int | None = None
    name: ClassVar[str] = "redistribute"

    def __post_init__(self) -> None:
        check_positions("sinks", self.sinks)
        check_positions("image", self.image)
        for name in ("give", "ratio", "floor"):
            if not 0 <= finite(name, getattr(self, name)) <= 1:
                raise HeadscopeError(f"{name}: {getattr(self, name):g} is outside 0 to 1.")
        if self.sinks == self.image:
            raise HeadscopeError(f"sinks: {self.sinks!r} is the image too, so nothing would be left to receive.")
        if self.shuffle is not None and self.shuffle < 0:
            raise HeadscopeError(f"shuffle: {self.shuffle} is negative, and a seed is 0 or more.")

    def __str__(self) -> str:
        numbers = [self.give, self.ratio, self.floor]
        if self.floor == IMAGE_FLOOR:
            numbers.pop()
            if self.ratio == IMAGE_CENTRIC_RATIO:
                numbers.pop()
        shuffle = [] if self.shuffle is None else [f"shuffle={self.shuffle}"]
        return f"redistribute({', '.join([self.sinks, self.image, *map(short, numbers), *shuffle])})"


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
        return f"swap({', '.join([self.mechanism, *(f'{key}={short(value)}' for key, value in self.settings)])})"


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
        finite("value", self.value)
        if finite("above", self.above) < 0:
            raise HeadscopeError(f"above: {self.above:g} is negative: write 0 to overwrite every token.")

    def __str__(self) -> str:
        return f"overwrite({self.coordinate}, {short(self.value)}, {short(self.above)})"


OnSpans = WeighSpan | ShiftLogits | MoveMass | Boost | Redistribute
"""Operations that may be limited to some queries."""
Operation = Ablate | Scale | Temperature | OnSpans | Stream | Swap | Overwrite


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


def short(number: float) -> str:
    """The number in as few digits as read back to the same."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def finite(name: str, number: float) -> float:
    if not math.isfinite(number):
        raise HeadscopeError(f"{name}: {number} is no finite number.")
    return number


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise HeadscopeError(f"{name}: {value!r} is none of {', '.join(allowed)}.")
