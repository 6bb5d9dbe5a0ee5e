"""Receiver heads: heads in which a few sentences of a trace receive most of what later sentences look back with.

    kurtosis = receiver_kurtosis(subject, tokens.ids, tokens.response, tokens.texts)     # (layer, head)
    receiver_heads(kurtosis)

    v_i  = mean over sentences u >= i + 4 of (mean over the queries t of u and the keys s of i of A[t, s])
    kurtosis of a head = kurtosis over i of v_i       (0 for a normal distribution)

Bogdan et al., "Thought Anchors: Which LLM Reasoning Steps Matter?", 2025: their vertical scores, with the four
sentences of proximity, the plain kurtosis and the 20 heads of the code that they released. Sentences are those of the
response. The values are exact: one forward, in which each layer's map is summed sentence by sentence of queries and
never held.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.stats import kurtosis
from torch import Tensor
from xarray import DataArray

from analysis.rhythm.parts import Part
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.heads import Head
from probes.subject import Subject
from probes.tap import Tap

SKIP = 4  # a sentence hears only from those so many later, or more: what is near is attended to in any case
RECEIVERS = 20  # heads of the highest kurtosis
SHORTEST = 10  # characters of a sentence: "1." and the like belong to what follows
LEAST_SENTENCES = 4  # with a value: the kurtosis of fewer says nothing
_ENDS = re.compile(r"[.!?]+(?=\s|$)|\n")


def sentences(texts: Sequence[str]) -> list[range]:
    """Which tokens make up each sentence, from 0 at the first token; together they are all tokens.

    A sentence ends with the token that holds a full stop, an exclamation or a question mark before white space or at
    the end of the text, or a newline. One of fewer than 10 characters, white space around it not counted, belongs to
    the sentence after it; the last such to the one before it.
    """
    text, stops, end = "".join(texts), [], 0
    ends = [match.end() for match in _ENDS.finditer(text)]
    for number, piece in enumerate(texts, start=1):
        start, end = end, end + len(piece)
        if any(start < each <= end for each in ends):
            stops.append(number)
    found: list[range] = []
    first = 0
    for stop in stops:
        if len("".join(texts[first:stop]).strip()) >= SHORTEST:
            found.append(range(first, stop))
            first = stop
    if first < len(texts):
        rest = range(first, len(texts))
        if found and len("".join(texts[first:]).strip()) < SHORTEST:
            rest = range(found.pop().start, len(texts))
        found.append(rest)
    return found


class SentenceReader:
    """v_i of every head: the attention each sentence's tokens receive from sentences at least `SKIP` later.

    spoken: the positions of each sentence, one after the other.
    """

    def __init__(self, spoken: Sequence[range]) -> None:
        self.spoken = spoken
        self._heard: dict[int, Tensor] = {}

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack:
            return
        part = Part(call)
        heard = torch.zeros(call.q.shape[1], max(0, len(self.spoken) - SKIP), device=call.q.device)
        lengths = torch.tensor([len(each) for each in self.spoken], device=call.q.device)
        for number, later in enumerate(self.spoken[SKIP:], start=1):
            queries, keys = slice(later.start, later.stop), slice(0, later.stop)
            received = part.statistics(queries, keys, wanted=["received_sum"])["received_sum"][0]
            earlier = received[:, self.spoken[0].start : self.spoken[number - 1].stop]
            by_sentence = torch.segment_reduce(earlier.T.contiguous(), "mean", lengths=lengths[:number]).T
            heard[:, :number] += by_sentence / len(later)
        self._heard[call.layer.index] = heard / torch.arange(heard.shape[1], 0, -1, device=heard.device)

    def heard(self) -> Float[Tensor, "layer head sentence"]:
        """v_i, in [0, 1], of all sentences but the last `SKIP`, from which none is far enough away."""
        return torch.stack([self._heard[layer] for layer in sorted(self._heard)]).cpu()


@torch.inference_mode()
def receiver_kurtosis(subject: Subject, ids: Int[Tensor, " n"], response: range, texts: Sequence[str]) -> DataArray:
    """Kurtosis over the sentences of a response of what each receives from later ones, dims (layer, head).

    ids: prompt and response. response: its positions. texts: the text of each of its tokens.
    NaN for every head of a response in which fewer than 4 sentences have 4 sentences after them, and for a head that
    gives all sentences the same. Raises HeadscopeError where a token of the response has no text.
    """
    if len(texts) != len(response):
        raise HeadscopeError(f"The response has {len(response)} tokens and {len(texts)} texts: give one for each.")
    spoken = [range(response.start + each.start, response.start + each.stop) for each in sentences(texts)]
    if len(spoken) - SKIP < LEAST_SENTENCES:
        return _per_head(np.full((subject.anatomy.layers, subject.anatomy.query_heads), np.nan))
    reader = SentenceReader(spoken)
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=ids[None, : response.stop].to(subject.device), use_cache=False, **last_logits(subject))
    return _per_head(spread(reader.heard().double().numpy()))


def spread(heard: Float[np.ndarray, "layer head sentence"]) -> NDArray[np.float64]:
    """Kurtosis over sentences, (layer, head); NaN where all values are the same, or fewer than 4."""
    same = np.ptp(heard, axis=-1) <= 1e-6 * np.abs(heard).max(-1)
    if heard.shape[-1] < LEAST_SENTENCES:
        return np.full(heard.shape[:2], np.nan)
    level = np.where(same[..., None], np.arange(heard.shape[-1]), heard)  # so that nothing is divided by nothing
    return np.where(same, np.nan, kurtosis(level, axis=-1))


def receiver_heads(mean_kurtosis: DataArray, count: int = RECEIVERS) -> tuple[Head, ...]:
    """The heads of the highest kurtosis, highest first; of equal ones those of the lower layer, then number.

    mean_kurtosis: (layer, head), over traces. Heads without one (NaN) are never among them, so that there may be fewer
    than `count`, down to none. Raises HeadscopeError for a count below 1.
    """
    if count < 1:
        raise HeadscopeError(f"Receivers are at least 1 head, not {count}.")
    values = mean_kurtosis.transpose("layer", "head").values
    layers, numbers = (mean_kurtosis[dim].values for dim in ("layer", "head"))
    known = np.argwhere(np.isfinite(values)).tolist()
    ranked = sorted((-values[i, j], Head(int(layers[i]), int(numbers[j]))) for i, j in known)
    return tuple(head for _, head in ranked[:count])


def _per_head(values: NDArray[np.float64]) -> DataArray:
    return DataArray(values, dims=("layer", "head"), coords={"layer": range(len(values))})
