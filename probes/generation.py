"""Greedy decoding of one prompt, and of many differently changed continuations of it at once."""

import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from probes.branches import BranchCache
from probes.errors import HeadscopeError
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Tap


def check_length(subject: Subject, tokens: int, new_tokens: int) -> None:
    """Raises HeadscopeError where prompt and answer together go beyond the model's window."""
    limit = subject.anatomy.context
    if limit and tokens + new_tokens > limit:
        raise HeadscopeError(
            f"A prompt of {tokens} tokens and {new_tokens} new ones go beyond the {limit} positions of {subject.name}: "
            f"choose at most {limit - new_tokens} tokens."
        )


@torch.inference_mode()
def prefill(subject: Subject, ids: Int[Tensor, " n"], plan: Plan | None = None) -> Any:
    """The KV cache of all tokens but the last, which is left to be the first decode step.

    Wu et al. read their heads only while decoding; so the row that produces the first answer token is a decoded one.
    """
    if len(ids) < 2:
        raise HeadscopeError("A prompt needs at least two tokens.")
    cache = DynamicCache(config=subject.model.config)
    with Tap(subject, plan=plan):
        subject.model(
            input_ids=ids[None, :-1].to(subject.device), past_key_values=cache, use_cache=True, **last_logits(subject)
        )
    return cache


@torch.inference_mode()
def greedy(subject: Subject, cache: Any, last: int, new_tokens: int) -> list[int]:
    """Tokens that follow, the most likely one each time, up to a stop token (not included). Grows `cache`."""
    token, answer = last, list[int]()
    while len(answer) < new_tokens:
        ids = torch.tensor([[token]], device=subject.device)
        logits = subject.model(input_ids=ids, past_key_values=cache, use_cache=True, **last_logits(subject)).logits
        token = int(logits[0, -1].argmax())
        if token in subject.stop_tokens:
            break
        answer.append(token)
    return answer


@torch.inference_mode()
def greedy_branches(
    subject: Subject,
    cache: Any,
    last: int,
    new_tokens: int,
    plan: Plan,
    branches: int,
) -> list[list[int]]:
    """As `greedy`, for `branches` continuations that share the prompt's cache; row i of the plan changes branch i.

    A branch that has ended leaves the batch. `cache` is not changed.
    """
    grown = BranchCache(cache)
    answers: list[list[int]] = [[] for _ in range(branches)]
    running = torch.arange(branches)
    tokens = torch.full((branches, 1), last, device=subject.device)
    stop = torch.tensor(sorted(subject.stop_tokens), device=subject.device)
    for step in range(new_tokens):
        with Tap(subject, plan=plan):
            logits = subject.model(
                input_ids=tokens, past_key_values=grown, use_cache=True, **last_logits(subject)
            ).logits
        chosen = logits[:, -1].argmax(-1)
        ended = torch.isin(chosen, stop)
        for branch, token, over in zip(running.tolist(), chosen.tolist(), ended.tolist(), strict=True):
            if not over:
                answers[branch].append(token)
        if step + 1 == new_tokens or bool(ended.all()):
            break
        if bool(ended.any()):
            rows = (~ended).nonzero()[:, 0]
            running, chosen, plan = running[rows.cpu()], chosen[rows], plan.rows(rows)
            grown.keep(rows)
        tokens = chosen[:, None]
    return answers


def last_logits(subject: Subject) -> dict[str, int]:
    """Only the last position's logits: at 8k tokens all of them would take 1.6 GB."""
    known = inspect.signature(type(subject.model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
