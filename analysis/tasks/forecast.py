"""How well does the model foresee a text that it is given? Loss and hit of each token, in one prefill.

    loss_i = -log softmax(z_{i-1})[x_i]         in nats
    hit_i  = argmax z_{i-1} = x_i

Logits are made for a few hundred positions at a time: those of 8k tokens would take 1.6 GB at SmolLM2's vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.tasks.task import Example, Outcome, PlanFor, record
from probes.errors import HeadscopeError
from probes.generation import check_length, last_logits
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

LOGIT_BYTES = 200_000_000  # held at once: the logits of some positions and their log-softmax, in float32


@dataclass(frozen=True)
class Forecast:
    """Of each scored token: its negative log-likelihood in nats, and whether it was the most likely one."""

    loss: Float[Tensor, " scored"]
    hit: Bool[Tensor, " scored"]


def judge_forecasts(
    subject: Subject,
    example: Example,
    prompt: Prompt,
    conditions: Mapping[str, PlanFor],
    mark: Callable[[Forecast], Outcome],
    *,
    first: int,
) -> dict[str, Any]:
    """The result line of an example that is read, not answered; tokens from `first` on are scored.

    Raises HeadscopeError for a plan that acts only in decoding, which here would silently change nothing.
    """
    plans = {name: plan_for(prompt) for name, plan_for in conditions.items()}
    for name, plan in plans.items():
        if plan.acts_in("decode") and not plan.acts_in("prefill"):
            raise HeadscopeError(
                f"phase: {name!r} acts only in decoding and this task reads one prefill: choose prefill or both."
            )
    return record(
        example, {name: mark(forecast(subject, prompt.ids, plan, first=first)) for name, plan in plans.items()}
    )


@torch.inference_mode()
def forecast(subject: Subject, ids: Int[Tensor, " n"], plan: Plan | None = None, *, first: int = 1) -> Forecast:
    """Loss and hit of the tokens at positions first, ..., n - 1, each from all tokens before it.

    Raises HeadscopeError where `first` leaves no token to score or none before it, and for a text beyond the window,
    which only a plan can read under which every head streams with positions inside a cache that fits it.
    """
    if not 1 <= first < len(ids):
        raise HeadscopeError(f"first: a text of {len(ids)} tokens can be scored from 1 to {len(ids) - 1}, not {first}.")
    size = None if plan is None else plan.cache_size(subject.anatomy.layers)
    if size is None or size > subject.anatomy.context:
        check_length(subject, len(ids), 0)
    ids = ids.to(subject.device)
    states = _states(subject, ids, plan)
    losses, hits = [], []
    for positions in torch.arange(first, len(ids), device=ids.device).split(_positions_at_once(subject)):
        logits = _logits(subject, ids, states, positions - 1)
        losses.append(cross_entropy(logits, ids[positions], reduction="none"))
        hits.append(logits.argmax(-1) == ids[positions])
    return Forecast(torch.cat(losses).cpu(), torch.cat(hits).cpu())


def _states(subject: Subject, ids: Int[Tensor, " n"], plan: Plan | None) -> Any:
    """What the model's body hands to its head."""
    held: list[Any] = []
    hook = subject.model.base_model.register_forward_hook(lambda _, __, output: held.append(output))
    try:
        with Tap(subject, plan=plan):
            subject.model(input_ids=ids[None], use_cache=False, **last_logits(subject))
    finally:
        hook.remove()
    return held[-1]


def _logits(
    subject: Subject, ids: Int[Tensor, " n"], states: Any, positions: Int[Tensor, " some"]
) -> Float[Tensor, "some vocabulary"]:
    # Families scale or cap their logits in the model's own forward, so that forward makes them, its body stood in for.
    some = type(states)(last_hidden_state=states.last_hidden_state[:, positions])
    with patch.object(subject.model.base_model, "forward", lambda *_, **__: some):
        return subject.model(input_ids=ids[None, positions], use_cache=False).logits[0].float()


def _positions_at_once(subject: Subject) -> int:
    vocabulary = int(subject.model.config.get_text_config().vocab_size)
    return max(1, LOGIT_BYTES // (2 * 4 * vocabulary))
