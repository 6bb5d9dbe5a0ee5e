"""How open was the next token, and how likely the one that came? Entropy and log-probability along a text."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.next_token import logits_after, positions_at_once
from probes.subject import Subject


def openness(
    subject: Subject, ids: Int[Tensor, " n"], states: Any, response: range
) -> dict[str, Float[Tensor, " token"]]:
    """Of each token of the response, in nats, at temperature 1, on the CPU.

    entropy          -sum_v p(v) log p(v) of the distribution from which the token was drawn (position t - 1)
    next_entropy     the same of the distribution that follows it (position t)
    log_probability  log p of the token
    """
    entropies, likelihoods = [], []
    for positions in torch.arange(response.start - 1, response.stop, device=ids.device).split(
        positions_at_once(subject, copies=3)
    ):
        log_p = logits_after(subject, ids, states, positions).log_softmax(-1)
        entropies.append(torch.special.entr(log_p.exp()).sum(-1))
        follows = ids[(positions + 1).clamp_max(len(ids) - 1)]  # nothing follows the last, which is left out below
        likelihoods.append(log_p.gather(-1, follows[:, None])[:, 0])
    entropy, likelihood = torch.cat(entropies).cpu(), torch.cat(likelihoods).cpu()
    return {"entropy": entropy[:-1], "next_entropy": entropy[1:], "log_probability": likelihood[:-1]}
