"""Does what follows hang on the tokens of high influence? Other tokens are forced there, and the model goes on.

    record = perturb(subject, tokens, fai)              # one trace; fai: one number for each response token
    found = perturbation_test(records, seed=0)          # over traces

At a position the likeliest other tokens are forced one by one, and the model goes on greedily; what survives is the
Jaccard similarity of content words between that and what the trace says. Li et al., "Attention Illuminates LLM
Reasoning" (arXiv 2510.13554), section 3, compare positions of high and low FAI.

Two things they do not control are reported beside it. Positions can be matched for depth, as what comes early in a
response differs from what comes late whatever the attention. And a trace that was drawn at a temperature would differ
from a greedy continuation of itself: `unforced` is what survives where the trace's own token stays.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.rhythm.continuations import similarity
from analysis.rhythm.influential import Chosen, choose
from analysis.rhythm.perturbation_summary import PUBLISHED, perturbation_test
from analysis.rhythm.traces import Tokens
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.generation import generate, last_logits
from probes.subject import Subject

__all__ = ["PUBLISHED", "likely_others", "perturb", "perturbation_test"]

ALTERNATIVES = 3  # k: other tokens forced at a position
POSITIONS = 3  # of high and of low influence each
CONTINUATION = 64  # tokens that are compared, fewer where the response ends
MARGIN = 16  # the last tokens of a response, after which too little follows to compare
ROWS = 32  # continuations side by side


def perturb(
    subject: Subject,
    tokens: Tokens,
    fai: Float[np.ndarray, " token"],
    *,
    positions: int = POSITIONS,
    margin: int = MARGIN,
    alternatives: int = ALTERNATIVES,
    new_tokens: int = CONTINUATION,
    rows: int = ROWS,
) -> dict[str, Any] | None:
    """What survives at the positions of highest and of lowest influence of one trace, ready for JSON.

    fai: influence of each response token, NaN where it has none. rows: continuations that are decoded side by side.
    Returns "plain" (highest against lowest) and "matched" (pairs within a tenth of the response), each with "survival"
        and "unforced", in [0, 1], means over their positions, "high" and "low"; None for a "matched" without a pair.
        "places" holds each position: its number among the response's tokens, the tokens forced and what survived each.
        None where the response has too few tokens of known influence.
    Raises HeadscopeError for settings out of range and for a series of another length.
    """
    if min(positions, alternatives, new_tokens, rows, margin) < 1:
        raise HeadscopeError("A perturbation needs at least one position, alternative, new token, row and margin.")
    if len(fai) != len(tokens.response):
        raise HeadscopeError(f"{len(fai)} numbers do not match a response of {len(tokens.response)} tokens.")
    plain = choose(fai, count=positions, margin=margin)
    if plain is None:
        return None
    matched = choose(fai, count=positions, margin=margin, matched=True)
    every = sorted({i for some in (plain, matched) if some for i in (*some.high, *some.low)})
    places = _places(subject, tokens, every, alternatives=alternatives, new_tokens=new_tokens, rows=rows)
    return {
        "plain": _halves(places, plain),
        "matched": _halves(places, matched) if matched else None,
        "places": [places[i] for i in every],
    }


@torch.inference_mode()
def likely_others(subject: Subject, ids: Tensor, positions: Sequence[int], count: int) -> dict[int, list[int]]:
    """The likeliest tokens in place of the one at each position, this one, stop tokens and other special ones aside."""
    before = [position - 1 for position in positions]
    options: dict[str, Any] = {"logits_to_keep": torch.tensor(before, device=subject.device)}
    known = bool(last_logits(subject))
    logits = forward(subject, collate(subject, [ids]), **(options if known else {})).logits[0]
    logits = (logits if known else logits[before]).float().cpu().clone()
    never = [*subject.stop_tokens, *getattr(subject.tokenizer, "all_special_ids", [])]
    logits[:, [token for token in never if token < logits.shape[-1]]] = -torch.inf
    logits[torch.arange(len(positions)), ids[list(positions)]] = -torch.inf
    return dict(zip(positions, logits.topk(count).indices.tolist(), strict=True))


def _places(
    subject: Subject, tokens: Tokens, every: Sequence[int], *, alternatives: int, new_tokens: int, rows: int
) -> dict[int, dict[str, Any]]:
    start, n = tokens.response.start, len(tokens.ids)
    forced = likely_others(subject, tokens.ids, [start + i for i in every], alternatives)
    branches = [
        (position, token) for position, others in forced.items() for token in (int(tokens.ids[position]), *others)
    ]
    found, each = {}, 1 + alternatives
    if subject.anatomy.context and n + new_tokens > subject.anatomy.context:
        rows = each  # beside a late position an early one would have no room for all of its tokens
    said: list[float] = []
    for at in range(0, len(branches), rows):
        said += _survivals(subject, tokens.ids, branches[at : at + rows], new_tokens)
    for number, i in enumerate(every):
        own, *others = said[number * each : (number + 1) * each]
        found[i] = {
            "position": i,
            "token": tokens.texts[i],
            "forced": [str(subject.tokenizer.decode([token])) for token in forced[start + i]],
            "survivals": others,
            "survival": float(np.mean(others)),
            "unforced": own,
        }
    return found


def _survivals(subject: Subject, ids: Tensor, branches: Sequence[tuple[int, int]], new_tokens: int) -> list[float]:
    """What survives behind each (position, token in its place)."""
    steps = min(new_tokens, len(ids) - 1 - min(position for position, _ in branches))
    prompts = [torch.cat([ids[:position], torch.tensor([token])]) for position, token in branches]
    answers = generate(subject, prompts, new_tokens=steps)
    found = []
    for (position, _), answer in zip(branches, answers, strict=True):
        own = ids[position + 1 : position + 1 + steps].tolist()
        texts = (str(subject.tokenizer.decode(each, skip_special_tokens=True)) for each in (own, answer[: len(own)]))
        found.append(similarity(*texts))
    return found


def _halves(places: dict[int, dict[str, Any]], chosen: Chosen) -> dict[str, dict[str, float]]:
    return {
        measure: {
            half: float(np.mean([places[i][measure] for i in some]))
            for half, some in (("high", chosen.high), ("low", chosen.low))
        }
        for measure in ("survival", "unforced")
    } | {"positions": {"high": len(chosen.high), "low": len(chosen.low)}}
