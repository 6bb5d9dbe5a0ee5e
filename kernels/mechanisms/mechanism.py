"""What an entry of the registry says of itself, and how its settings are checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite

from jaxtyping import Int
from torch import Tensor

from kernels.mechanisms.call import Rule, Settings

PER_HEAD = ("h", "gates")  # dimensions of a tensor setting that hold each head's part, one head after the other


@dataclass(frozen=True)
class Parameter:
    """One setting: a finite number in [low, high], or a tensor where `tensor` names its dimensions ("hidden h").

    default None leaves the setting out unless it is given; with `tensor` it also means that a number won't do.
    required: it has to be given.
    """

    meaning: str
    default: float | None = None
    low: float = -inf
    high: float = inf
    whole: bool = False
    tensor: str = ""
    required: bool = False

    def check(self, name: str, given: float | Tensor) -> float | Tensor:
        """The value, a whole number as an int. Raises ValueError, with what would be right, for any other."""
        if isinstance(given, Tensor):
            if not self.tensor or given.ndim != len(self.tensor.split()):
                raise ValueError(f"{name} must be {self.expected()}, not a tensor of shape {tuple(given.shape)}")
            outside = given[~((given >= self.low) & (given <= self.high))]
            if len(outside):
                raise ValueError(f"{name} must hold {self._number()} in every place, and one is {outside[0]:g}")
            return given
        real = isinstance(given, int | float) and not isinstance(given, bool) and isfinite(given)
        wanted = not self.tensor or self.default is not None
        if not (real and wanted and self.low <= given <= self.high and (given == int(given) or not self.whole)):
            raise ValueError(f"{name} must be {self.expected()}, not {given!r}")
        return int(given) if self.whole else given

    def part(self, name: str, value: float | Tensor, heads: Int[Tensor, " some"], of: int) -> float | Tensor:
        """What is left of the value where a layer of `of` heads is cut down to some of them. A number, and a tensor
        with one part for all heads, stay as they are. Raises ValueError where the parts can't be told from each other.
        """
        if not isinstance(value, Tensor):
            return value
        left = value
        for place, (dimension, size) in enumerate(zip(self.tensor.split(), value.shape, strict=True)):
            if dimension in PER_HEAD and size > 1:
                if size % of or (dimension == "h" and size != of):
                    raise ValueError(f"{name} holds {size} parts, and the layer has {of} heads")
                by_head = left.unflatten(place, (of, -1))
                left = by_head.index_select(place, heads.to(value.device)).flatten(place, place + 1)
        return left

    def expected(self) -> str:
        """What may be given, in words."""
        tensor = f"a tensor ({', '.join(self.tensor.split())})"
        if not self.tensor:
            return self._number()
        return tensor if self.default is None else f"{self._number()}, or {tensor} of such numbers"

    def _number(self) -> str:
        low = f"at least {self.low:g}" if self.low > -inf else ""
        high = f"at most {self.high:g}" if self.high < inf else ""
        bounds = " and ".join(bound for bound in (low, high) if bound)
        return f"a {'whole ' if self.whole else ''}number{' of ' if bounds else ''}{bounds}"


@dataclass(frozen=True)
class Mechanism:
    """A rule in place of softmax: output = gate * (effective_map @ v).

    effective_map (b, h, n, m) is the dense reference and the specification. forward (b, h, n, e) gives the output, in
    q's dtype, without holding the map of a long input. gate (b, h, n, 1 or e) is there where a factor differs within a
    head's output and can't be part of the map. All three take a Call and what `settings` returned.

    name: the file's. licence: where the formula is from. needs_training: the method is meant to be trained with; put
    into a model that was not, it shows an effect and not the method. wants_inputs: it reads Call.inputs.
    """

    name: str
    title: str
    paper: str
    licence: str
    needs_training: bool
    parameters: Mapping[str, Parameter]
    effective_map: Rule
    forward: Rule
    gate: Rule | None = None
    wants_inputs: bool = False

    def settings(self, given: Settings) -> dict[str, float | Tensor]:
        """`given` checked, and the defaults of the rest. Raises ValueError naming the setting that is unknown, out of
        range or missing."""
        for name in given:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "no settings"
                raise ValueError(f"{self.name} has no setting {name!r}; it has {known}")
        for name, parameter in self.parameters.items():
            if parameter.required and name not in given:
                raise ValueError(f"{self.name} needs {name}, {parameter.expected()}")
        values = {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}
        return {name: self.parameters[name].check(name, value) for name, value in values.items() if value is not None}

    def part(self, settings: Settings, heads: Int[Tensor, " some"], of: int) -> dict[str, float | Tensor]:
        """The settings of a layer of `of` heads, for some of them; what `settings` returned comes in."""
        return {name: self.parameters[name].part(name, value, heads, of) for name, value in settings.items()}
