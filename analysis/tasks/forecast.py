"""How well does the model foresee a text that it is given? Loss and hit of each token, in one prefill.

loss_i = -log softmax(z_{i-1})[x_i]         in nats
hit_i  = argmax z_{i-1} = x_i
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.tasks.task import Example, Outcome, PlanFor, record
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.next_token import body_states, logits_after, positions_at_once
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject


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
    states = body_states(subject, ids, plan=plan)
    losses, hits = [], []
    for positions in torch.arange(first, len(ids), device=ids.device).split(positions_at_once(subject, copies=2)):
        logits = logits_after(subject, ids, states, positions - 1)
        losses.append(cross_entropy(logits, ids[positions], reduction="none"))
        hits.append(logits.argmax(-1) == ids[positions])
    return Forecast(torch.cat(losses).cpu(), torch.cat(hits).cpu())
