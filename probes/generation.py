"""Decoding under a Plan: one prompt, a batch of prompts, or many differently changed continuations of one prompt."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from probes.batch import collate, forward, step_positions
from probes.branches import BranchCache
from probes.contrast import Contrast, with_idle_rows
from probes.errors import HeadscopeError
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Reader, Tap


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


@torch.inference_mode()
def generate(
    subject: Subject,
    prompts: Sequence[Prompt | Int[Tensor, " n"]],
    *,
    new_tokens: int,
    plan: Plan | None = None,
    readers: Sequence[Reader] = (),
    contrast: Contrast | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Tokens that follow each prompt, in one batch with a KV cache, up to a stop token (not included).

    temperature 0 takes the most likely token; above it tokens are drawn, from the likeliest that together hold `top_p`
    of the probability (Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020). plan: its rows are
    the prompts, or one row for all (Plan.stack). readers see the prefill and every step; padding on the left has
    negative positions. contrast: further streams that decode in the same batch, behind the prompts, under no plan, fed
    the tokens chosen for their prompts; readers see them too. Raises HeadscopeError for an empty batch and for settings
    out of range.
    """
    if not prompts or new_tokens < 1:
        raise HeadscopeError("Generation takes at least one prompt and one new token.")
    if temperature < 0 or not 0 < top_p <= 1:
        raise HeadscopeError(f"temperature is at least 0 and top_p in (0, 1]: {temperature} and {top_p} are not.")
    streams = contrast.streams(prompts) if contrast is not None else []
    if any(len(stream) != len(prompts) for stream in streams):
        raise HeadscopeError(f"Each stream of a contrast needs {len(prompts)} prompts, one beside each.")
    every = [*prompts, *(prompt for stream in streams for prompt in stream)]
    check_length(subject, max(len(prompt) for prompt in every), new_tokens)
    if streams and plan is not None:
        plan = with_idle_rows(plan, len(prompts), len(every))
    batch = collate(subject, every)
    stop = torch.tensor(sorted(subject.stop_tokens), device=subject.device)
    draw = torch.Generator().manual_seed(seed)
    cache, found, seen = DynamicCache(config=subject.model.config), [], batch.seen
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=subject.device)
    options = {"past_key_values": cache, "use_cache": True, **last_logits(subject)}
    with Tap(subject, readers=[*readers, *(contrast.readers if contrast is not None else ())], plan=plan):
        logits = forward(subject, batch, **options).logits[:, -1]
        for step in range(new_tokens):
            main, *others = logits.split(len(prompts))
            if contrast is not None:
                main = contrast.combine(main, others)
            chosen = _chosen(main, temperature, top_p, draw)
            ended = ended | torch.isin(chosen, stop)
            found.append(torch.where(ended, -1, chosen))
            if step + 1 == new_tokens or bool(ended.all()):
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
            logits = subject.model(
                input_ids=chosen.repeat(1 + len(streams))[:, None],
                attention_mask=seen,
                position_ids=step_positions(batch, step),
                **options,
            ).logits[:, -1]
    return [[token for token in row if token >= 0] for row in torch.stack(found, dim=1).tolist()]


def _chosen(logits: Tensor, temperature: float, top_p: float, draw: torch.Generator) -> Int[Tensor, " b"]:
    if temperature == 0:
        return logits.argmax(-1)
    p, token = (logits.float().cpu() / temperature).softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)  # the likeliest always stays
    return token.gather(-1, torch.multinomial(p, 1, generator=draw))[:, 0].to(logits.device)


def last_logits(subject: Subject) -> dict[str, int]:
    """Only the last position's logits: at 8k tokens all of them would take 1.6 GB."""
    known = inspect.signature(type(subject.model).forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}
