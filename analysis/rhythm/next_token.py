"""How open was the next token, and how likely the one that came? Entropy and log-probability along a text.

Logits are made for some positions at a time: those of 32k tokens would take 6.4 GB at SmolLM2's vocabulary.
"""

from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.generation import last_logits
from probes.subject import Subject
from probes.tap import Reader, Tap

LOGIT_BYTES = 200_000_000  # held at once: the logits of some positions, their log-softmax and their softmax


def body_states(subject: Subject, ids: Int[Tensor, " n"], reader: Reader) -> Any:
    """What the model's body hands to its head for a text, in one forward that `reader` reads."""
    held: list[Any] = []
    hook = subject.model.base_model.register_forward_hook(lambda _, __, output: held.append(output))
    try:
        with Tap(subject, readers=[reader]):
            subject.model(input_ids=ids[None], use_cache=False, **last_logits(subject))
    finally:
        hook.remove()
    return held[-1]


def openness(
    subject: Subject, ids: Int[Tensor, " n"], states: Any, response: range
) -> dict[str, Float[Tensor, " token"]]:
    """Of each token of the response, in nats, at temperature 1, on the CPU.

    entropy          -sum_v p(v) log p(v) of the distribution from which the token was drawn (position t - 1)
    next_entropy     the same of the distribution that follows it (position t)
    log_probability  log p of the token
    """
    entropies, likelihoods = [], []
    for positions in torch.arange(response.start - 1, response.stop, device=ids.device).split(_at_once(subject)):
        log_p = _logits(subject, ids, states, positions).log_softmax(-1)
        entropies.append(torch.special.entr(log_p.exp()).sum(-1))
        follows = ids[(positions + 1).clamp_max(len(ids) - 1)]  # nothing follows the last, which is left out below
        likelihoods.append(log_p.gather(-1, follows[:, None])[:, 0])
    entropy, likelihood = torch.cat(entropies).cpu(), torch.cat(likelihoods).cpu()
    return {"entropy": entropy[:-1], "next_entropy": entropy[1:], "log_probability": likelihood[:-1]}


def _logits(
    subject: Subject, ids: Int[Tensor, " n"], states: Any, positions: Int[Tensor, " some"]
) -> Float[Tensor, "some vocabulary"]:
    # Families scale or cap their logits in the model's own forward, so that forward makes them, its body stood in for.
    some = type(states)(last_hidden_state=states.last_hidden_state[:, positions])
    with patch.object(subject.model.base_model, "forward", lambda *_, **__: some):
        return subject.model(input_ids=ids[None, positions], use_cache=False).logits[0].float()


def _at_once(subject: Subject) -> int:
    return max(1, LOGIT_BYTES // (3 * 4 * subject.anatomy.vocabulary))
