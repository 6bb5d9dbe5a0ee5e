"""One forward pass, many statistics, as labelled arrays.

found = capture(subject, prompt, ["entropy", "received"])
found["entropy"].sel(layer=17, head=4)
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from kernels.statistics import CLIP, EDGES, PER_HEAD, PER_KEY, PER_TILE, STATISTICS, TOP, QueryWindow
from probes.call import PATTERN_TOKENS, AttentionCall
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.prompt import Prompt
from probes.readers import MeanQueryReader, StatisticsReader
from probes.subject import Subject
from probes.tap import Tap

UNITS = {
    "lse": "nats",
    "entropy": "nats",
    "distance": "tokens",
    "clipped_distance": "tokens",
    "top_key": "position",
    "top_keys": "position",
    "mean_query": "position",
    "participation": "keys",
    "received_sum": "queries' worth of attention",
    "received_sum_by_others": "queries' worth of attention",
}


@torch.inference_mode()
def capture(
    subject: Subject,
    prompt: Prompt,
    wanted: Iterable[str],
    *,
    windows: Mapping[str, QueryWindow] | None = None,
    clip: int = CLIP,
    top: int = TOP,
) -> xr.Dataset:
    """Statistics of every decoder head over one prompt; `kernels.statistics.reference` defines each name.

    Dims (layer, head, query), (layer, head, key), with `rank` after them for the `top` strongest keys, and
    (layer, head, bin) for the histogram, whose bins are named by their lower edge in tokens. "mass" gives one variable
    per span of the prompt; with windows, a statistic per key gives one variable per window.
    Raises HeadscopeError for what can't be answered: an unknown statistic, "mass" on a prompt without spans, a tile.
    """
    names = list(wanted)
    for name in names:
        if name not in STATISTICS:
            raise HeadscopeError(f"There is no statistic {name!r}: choose among {', '.join(STATISTICS)}.")
        if name in PER_TILE:
            raise HeadscopeError(f"{name!r} is a picture of one head's map: ask kernels.statistics for it.")
    if "mass" in names and not prompt.spans:
        raise HeadscopeError("The statistic 'mass' needs a prompt with at least one span.")
    reader = StatisticsReader(names, prompt.spans, windows=windows, clip=clip, top=top)
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=prompt.ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    variables = {}
    for label in next(iter(reader.found.values()))[0]:
        name = label.partition(":")[0]
        dims = ("layer", "head", "key" if name in PER_KEY else "bin" if name in PER_HEAD else "query")
        values = reader.stacked(label)[:, 0].numpy()
        variables[label] = xr.DataArray(
            values,
            dims=(*dims, "rank") if values.ndim > len(dims) else dims,
            coords={"bin": list(EDGES)} if name in PER_HEAD else {},
            attrs={"unit": UNITS.get(name, "share of attention")},
        )
    return xr.Dataset(variables, attrs={"model": subject.name, "tokens": len(prompt)})


@torch.inference_mode()
def mean_queries(subject: Subject, prompts: Sequence[Prompt]) -> dict[int, Float[Tensor, "h d"]]:
    """Mean query of every head before norm and RoPE, per layer, over all tokens of the prompts."""
    reader = MeanQueryReader()
    with Tap(subject, readers=[reader]):
        for prompt in prompts:
            subject.model(input_ids=prompt.ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    return reader.means()


@torch.inference_mode()
def frozen_pattern(subject: Subject, prompt: Prompt, layer: int) -> Float[Tensor, "h n n"]:
    """Attention weights of every head of a decoder layer: the setting `pattern` for a swap of any of them to `frozen`.

    In [0, 1], rows summing to 1 (less with a learned sink), float32 or wider, on the model's device.
    Raises HeadscopeError where the model has no such layer or the prompt has more than PATTERN_TOKENS tokens.
    """
    layers = subject.anatomy.layers
    if layer not in range(layers):
        raise HeadscopeError(f"There is no layer {layer}: this model has layers 0 to {layers - 1}.")
    if len(prompt) > PATTERN_TOKENS:
        raise HeadscopeError(
            f"A frozen pattern holds every pair of tokens: {len(prompt)} are too many, {PATTERN_TOKENS} the most."
        )
    reader = _PatternReader(layer)
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=prompt.ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    return reader.pattern


class _PatternReader:
    """The dense map of one decoder layer, of one prompt without padding."""

    pattern: Float[Tensor, "h n n"]

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack or call.layer.index != self.layer:
            return
        self.pattern = call.pattern()[0]
