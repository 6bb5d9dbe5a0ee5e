"""What does a model lose when its weights and activations are rounded to 8 bits (W8A8)?

    weights       w' = s clamp(round(w / s), -128, 127),              s = max |w| / 127
    activations   x' = s (clamp(round(x / s) + z, 0, 255) - z),       s = (high - low) / 255,  z = round(-low / s)

One pair (low, high) serves a whole tensor, so a massive activation stretches s until most other values round to 0.
low and high are fixed beforehand: running means, with momentum 0.9, of the least and greatest value in each of some
calibration texts, widened to hold 0. All of it is simulated: numbers are rounded, the arithmetic stays floating point.

    sites = calibrate(subject, [prompt.ids for prompt in texts])
    with quantised(subject, sites):                       # any forecast, task or capture in here is W8A8
        ...
    quantisation_loss(subject, windows, texts).facts()    # float and int8, nats per token, paired over windows

Bondarenko et al., "Quantizable Transformers", NeurIPS 2023, sections 2 and 5. As there, the language head stays in
float. Unlike there, so do attention scores and probabilities, which fused attention never lays open. Ranges are those
of the float model.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from analysis.tasks.forecast import forecast
from analysis.uncertainty import bca_mean
from probes.errors import HeadscopeError
from probes.generation import check_length, last_logits
from probes.subject import Subject

BITS = 8
MOMENTUM = 0.9  # of the running range; Bondarenko et al. take 16 batches
LEAST_STEP = torch.finfo(torch.float32).tiny  # a smaller step has no reciprocal in float32
PROBE_TOKENS = 32  # of the first calibration text: enough to see which tensors a layer reads

Kind = Literal["weight", "input", "output", "norm", "residual"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MATRICES = (nn.Linear, Conv1D, nn.Embedding)


@dataclass(frozen=True)
class Place:
    """A tensor that is rounded: the weight, the input or the output of the module at `path`.

    kind: `weight` of a linear layer or embedding; `input`, what a linear layer reads and none of the others is (what
    the heads say, the product inside an MLP); `output` of a linear layer; `norm`, what a norm puts out; `residual`,
    the stream as embeddings and blocks put it out and as norms between them read it.
    """

    path: str
    side: Literal["weight", "input", "output"]
    kind: Kind


@dataclass(frozen=True)
class Site(Place):
    """A Place with the range that its levels span, before it is widened to hold 0; [-max, max] of a weight."""

    low: float
    high: float


@dataclass(frozen=True)
class QuantisationLoss:
    """Mean loss of each window in nats per token, before and after, and the interval of the mean rise."""

    bits: int
    unquantised: NDArray[np.float64]
    quantised: NDArray[np.float64]
    interval: tuple[float, float] | None
    sites: tuple[Site, ...]

    def facts(self) -> dict[str, Any]:
        """Plain data for a run's summary; `low` and `high` bound the rise, None where all windows rise alike."""
        low, high = self.interval or (None, None)
        return {
            "float": float(self.unquantised.mean()),
            f"int{self.bits}": float(self.quantised.mean()),
            "rise": float((self.quantised - self.unquantised).mean()),
            "low": low,
            "high": high,
            "windows": {"float": self.unquantised.tolist(), f"int{self.bits}": self.quantised.tolist()},
            "sites": [asdict(site) for site in self.sites],
        }


def quantisation_loss(
    subject: Subject,
    windows: Sequence[Int[Tensor, " n"]],
    calibration: Sequence[Int[Tensor, " m"]],
    *,
    bits: int = BITS,
    kinds: Collection[Kind] = KINDS,
    first: int = 1,
    seed: int = 0,
) -> QuantisationLoss:
    """Loss of the windows' tokens from position `first` on, with and without the sites of `kinds` rounded to `bits`.

    Windows count alike, whatever their length. The interval of the rise is a paired bootstrap over them
    (`analysis.uncertainty.bca_mean`), drawn from `seed`.
    Raises HeadscopeError as `calibrate`, `quantised` and `forecast` do, and where there is no window.
    """
    if not windows:
        raise HeadscopeError("windows: a loss needs at least one window of text.")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise HeadscopeError(f"kinds: {unknown[0]!r} is none of {', '.join(KINDS)}.")
    chosen = tuple(site for site in calibrate(subject, calibration) if site.kind in kinds)
    before = window_losses(subject, windows, first=first)
    with quantised(subject, chosen, bits=bits):
        after = window_losses(subject, windows, first=first)
    return QuantisationLoss(bits, before, after, bca_mean(after - before, seed=seed), chosen)


def window_losses(subject: Subject, windows: Sequence[Int[Tensor, " n"]], *, first: int = 1) -> NDArray[np.float64]:
    """Mean loss of each window's tokens from position `first` on, in nats per token."""
    return np.array([float(forecast(subject, ids, first=first).loss.double().mean()) for ids in windows])


@torch.inference_mode()
def calibrate(subject: Subject, calibration: Sequence[Int[Tensor, " n"]]) -> tuple[Site, ...]:
    """Every weight and activation of the decoder that W8A8 rounds, with its range over the calibration texts.

    Raises HeadscopeError where there is no text, a text is beyond the window, a range is not finite, a matrix is no
    weight of a linear layer or embedding (experts held in one tensor), or a layer takes no part in the first text.
    """
    if not calibration:
        raise HeadscopeError("calibration: the ranges of activations need at least one text.")
    matrices = _matrices(subject)
    places = _places(subject, calibration[0][:PROBE_TOKENS])
    if idle := [path for path in matrices if Place(path, "output", _kind(matrices[path])) not in places]:
        raise HeadscopeError(f"{idle[0]} took no part in the first calibration text, so its range is unknown.")
    sites = [_weight_site(path, module) for path, module in matrices.items()]
    sites += [Site(**asdict(place), low=low, high=high) for place, (low, high) in _ranges(subject, calibration, places)]
    if wild := [site.path for site in sites if not np.isfinite([site.low, site.high]).all()]:
        raise HeadscopeError(f"{wild[0]} holds or meets values that are not finite, which no range can hold.")
    return tuple(sites)


@contextmanager
def quantised(subject: Subject, sites: Sequence[Site], *, bits: int = BITS) -> Iterator[None]:
    """The Subject with those sites rounded to `bits`; its own weights come back on leaving, after errors too.

    A head tied to the embedding keeps the float weight. Raises HeadscopeError for bits outside 2 to 16.
    """
    if not 2 <= bits <= 16:
        raise HeadscopeError(f"bits: levels are simulated for 2 to 16 bits, not {bits}.")
    with ExitStack() as undo:
        for site in sites:
            module = subject.model.get_submodule(site.path)
            if site.side == "weight":
                undo.callback(setattr, module, "weight", module.weight)
                module.weight = nn.Parameter(round_symmetric(module.weight, bits=bits), requires_grad=False)
            else:
                undo.enter_context(_hooked(module, site.side, partial(_round_in_place, site, bits)))
        yield


def round_symmetric(w: Float[Tensor, "*any"], *, bits: int = BITS) -> Float[Tensor, "*any"]:
    """w on the levels s {-(2^(bits-1) - 1), ..., 2^(bits-1) - 1} with s = max |w| / (2^(bits-1) - 1)."""
    most = 2 ** (bits - 1) - 1
    wide = w.to(torch.promote_types(w.dtype, torch.float32))
    step = float(wide.abs().max()) / most
    if step < LEAST_STEP:
        return torch.zeros_like(w)
    return ((wide / step).round() * step).to(w.dtype)


def round_asymmetric(x: Float[Tensor, "*any"], *, low: float, high: float, bits: int = BITS) -> Float[Tensor, "*any"]:
    """x on 2^bits levels that span [min(low, 0), max(high, 0)], one of them exactly 0; what lies beyond is clipped."""
    low, high, most = min(low, 0.0), max(high, 0.0), 2**bits - 1
    step = (high - low) / most
    if step < LEAST_STEP:
        return torch.zeros_like(x)
    zero = round(-low / step)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (((wide / step).round().clamp(-zero, most - zero)) * step).to(x.dtype)


def _matrices(subject: Subject) -> dict[str, nn.Module]:
    """The decoder's modules with a weight to round, by their path in the model."""
    found: dict[str, nn.Module] = {}
    for path, module in _decoder(subject):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                continue
            if not isinstance(module, MATRICES) or name != "weight":
                raise HeadscopeError(
                    f"{path}.{name} is not the weight of a linear layer or embedding, so what it puts out can't be "
                    "rounded: choose a model without experts."
                )
            found[path] = module
    return found


def _decoder(subject: Subject) -> list[tuple[str, nn.Module]]:
    inside = set(subject.model.get_decoder().modules())
    return [(path, module) for path, module in subject.model.named_modules() if module in inside]


def _weight_site(path: str, module: Any) -> Site:
    most = float(module.weight.abs().max())
    return Site(path, "weight", "weight", -most, most)


def _kind(module: nn.Module) -> Kind:
    """Of what a module puts out."""
    if isinstance(module, nn.Linear | Conv1D):
        return "output"
    return "norm" if _is_norm(module) else "residual"


def _is_norm(module: nn.Module) -> bool:
    """Norms are what holds nothing but vectors: classes of every family, alike in no name."""
    parameters = list(module.parameters())
    return bool(parameters) and not list(module.children()) and all(parameter.ndim == 1 for parameter in parameters)


def _places(subject: Subject, ids: Int[Tensor, " n"]) -> list[Place]:
    """The activations to round, each tensor once: outputs, and inputs that are no module's output.

    A sum or a product made between modules is known by its memory, which no tensor seen before shares. That finds the
    residual stream between attention and MLP in any family.
    """
    blocks = {layer.path.rpartition(".")[0] for layer in subject.anatomy.decoder}
    places: list[Place] = []
    seen: dict[int, Tensor] = {}  # holds each tensor, so that no later one is given its memory

    def met(place: Place, x: Tensor) -> None:
        memory = x.untyped_storage().data_ptr()
        if memory not in seen:
            seen[memory] = x
            places.append(place)

    with ExitStack() as undo:
        for path, module in _decoder(subject):
            if not (path in blocks or isinstance(module, MATRICES) or _is_norm(module)):
                continue
            output = Place(path, "output", _kind(module))
            undo.enter_context(_hooked(module, "output", partial(met, output)))
            if path not in blocks and not isinstance(module, nn.Embedding):
                read = Place(path, "input", "residual" if _is_norm(module) else "input")
                undo.enter_context(_hooked(module, "input", partial(met, read)))
        _read(subject, ids)
    return places


def _ranges(
    subject: Subject, calibration: Sequence[Int[Tensor, " n"]], places: Sequence[Place]
) -> list[tuple[Place, tuple[float, float]]]:
    """The running range of each place: that of the first text, then moved a tenth of the way to each later one's."""
    ranges: dict[Place, tuple[float, float]] = {}

    def observe(place: Place, x: Tensor) -> None:
        low, high = (float(edge) for edge in x.aminmax())
        before = ranges.get(place, (low, high))
        ranges[place] = (
            MOMENTUM * before[0] + (1 - MOMENTUM) * low,
            MOMENTUM * before[1] + (1 - MOMENTUM) * high,
        )

    with ExitStack() as undo:
        for place in places:
            module = subject.model.get_submodule(place.path)
            undo.enter_context(_hooked(module, place.side, partial(observe, place)))
        for ids in calibration:
            check_length(subject, len(ids), 0)
            _read(subject, ids)
    return list(ranges.items())


def _read(subject: Subject, ids: Int[Tensor, " n"]) -> None:
    subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))


def _round_in_place(site: Site, bits: int, x: Float[Tensor, "*any"]) -> None:
    # So that all who hold the tensor see it rounded: the residual stream that a block adds to is what its norm reads.
    x.copy_(round_asymmetric(x, low=site.low, high=site.high, bits=bits))


@contextmanager
def _hooked(module: nn.Module, side: str, act: Callable[[Tensor], None]) -> Iterator[None]:
    """`act` on the module's first input or its (first) output, each time it is called."""
    if side == "input":
        hook = module.register_forward_pre_hook(lambda _, inputs: act(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda _, __, output: act(output if torch.is_tensor(output) else output[0]))
    try:
        yield
    finally:
        hook.remove()
