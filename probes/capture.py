"""One forward pass, many statistics, as labelled arrays.

found = capture(subject, prompt, ["entropy", "received"])
found["entropy"].sel(layer=17, head=4)
"""

from collections.abc import Iterable, Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from kernels.statistics import STATISTICS
from kernels.statistics.reference import PER_KEY
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.prompt import Prompt
from probes.readers import MeanQueryReader, StatisticsReader
from probes.subject import Subject
from probes.tap import Tap

UNITS = {"lse": "nats", "entropy": "nats", "distance": "tokens", "top_key": "position"}


@torch.inference_mode()
def capture(subject: Subject, prompt: Prompt, wanted: Iterable[str]) -> xr.Dataset:
    """Statistics of every decoder head over one prompt; `kernels.statistics.reference` defines each name.

    Dims (layer, head, query) or (layer, head, key). "mass" gives one variable per span of the prompt.
    Raises HeadscopeError for an unknown statistic, and for "mass" on a prompt without spans.
    """
    names = list(wanted)
    for name in names:
        if name not in STATISTICS:
            raise HeadscopeError(f"There is no statistic {name!r}: choose among {', '.join(STATISTICS)}.")
    if "mass" in names and not prompt.spans:
        raise HeadscopeError("The statistic 'mass' needs a prompt with at least one span.")
    reader = StatisticsReader(names, prompt.spans)
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=prompt.ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    variables = {}
    for name in names:
        for label in [f"mass:{span}" for span in prompt.spans] if name == "mass" else [name]:
            axis = "key" if name in PER_KEY else "query"
            variables[label] = xr.DataArray(
                reader.stacked(label)[:, 0].numpy(),
                dims=("layer", "head", axis),
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
