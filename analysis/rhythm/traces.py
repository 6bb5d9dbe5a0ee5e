"""Traces: a prompt and the reasoning that follows it, from a user's file, from what ships, or written by the model.

    traces = shipped_traces(200)
    tokens = tokenise(subject, traces[0])
    tokens.ids[tokens.response]         # the response alone

A trace is kept as text, so that one file serves any model. What a model draws need not be how its tokenizer would
split the text that it spells; such a response keeps its tokens beside its text.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.rhythm.problems import Problem, is_right
from analysis.rhythm.trace_files import Trace, read_traces, shipped_traces
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.prompt import Part, chat_prompt, encode
from probes.subject import Subject

__all__ = ["Tokens", "Trace", "prompt_ids", "read_traces", "shipped_traces", "tokenise", "write_traces"]

TEMPERATURE = 0.7  # Li et al., section 3
NEW_TOKENS = 256
BATCH = 16
ATTEMPTS = 8  # of a response that has to say something
AROUND = 8  # tokens before one, enough to tell how it is spelt behind them
UNFINISHED = "\ufffd"  # what a tokenizer makes of half a character


@dataclass(frozen=True)
class Tokens:
    """ids (n,) of prompt and response, the positions of the response, and the text of each of its tokens.

    Joined the texts give the response. A character of several tokens belongs to one of them; the others hold none.
    """

    ids: Int[Tensor, " n"]
    response: range
    texts: tuple[str, ...]


def tokenise(subject: Subject, trace: Trace) -> Tokens:
    """Prompt and response tokenised one by one and joined, so that the boundary between them is certain.

    The response's own tokens (Trace.drawn) stand where they spell it in this model's tokenizer.
    Raises HeadscopeError for a response without a token, and for a tokenizer without character offsets.
    """
    prompt = prompt_ids(subject, trace)
    ids, texts = _response(subject, trace)
    if not ids:
        raise HeadscopeError(f"The response of trace {trace.id} is empty: a trace needs some reasoning to read.")
    joined = torch.cat([prompt, torch.tensor(ids, dtype=torch.long)])
    return Tokens(joined, range(len(prompt), len(joined)), tuple(texts))


def prompt_ids(subject: Subject, trace: Trace) -> Int[Tensor, " n"]:
    """The tokens before the response: the prompt as it stands, or the question through the model's chat template.

    A prompt that does not begin with the tokenizer's own first token gets it where the tokenizer adds one.
    """
    if not trace.prompt:
        return chat_prompt(subject, [Part(trace.question)]).ids
    first = getattr(subject.tokenizer, "bos_token", None)
    return encode(subject, trace.prompt, {}, special_tokens=not (first and trace.prompt.startswith(first))).ids


def write_traces(
    subject: Subject,
    problems: Sequence[Problem],
    *,
    temperature: float = TEMPERATURE,
    new_tokens: int = NEW_TOKENS,
    batch: int = BATCH,
    seed: int = 0,
) -> list[Trace]:
    """One trace for each problem, in order, `batch` of them written side by side.

    The draws depend on the seed and on which problems share a batch, so the same call gives the same traces on one
    machine. A response that says nothing is drawn anew.
    Raises HeadscopeError where the model keeps saying nothing, and for settings out of range.
    """
    if batch < 1:
        raise HeadscopeError(f"A batch of {batch} writes nothing: choose at least one trace.")
    found = []
    for start in range(0, len(problems), batch):
        some = problems[start : start + batch]
        answers = _answers(subject, some, temperature=temperature, new_tokens=new_tokens, seed=seed)
        found += [_trace(subject, problem, answer) for problem, answer in zip(some, answers, strict=True)]
    return found


def _answers(
    subject: Subject, some: Sequence[Problem], *, temperature: float, new_tokens: int, seed: int
) -> list[list[int]]:
    """The tokens of each response; those that say nothing are drawn anew, together."""
    found: list[list[int]] = [[] for _ in some]
    for attempt in range(ATTEMPTS if temperature else 1):
        left = [i for i, ids in enumerate(found) if not _decoded(subject, ids).strip()]
        if not left:
            break
        asked = [chat_prompt(subject, [Part(some[i].question)]) for i in left]
        draw = _batch_seed([some[i] for i in left], seed + attempt)
        drawn = generate(subject, asked, new_tokens=new_tokens, temperature=temperature, seed=draw)
        for i, ids in zip(left, drawn, strict=True):
            found[i] = ids
    return found


def _batch_seed(some: Sequence[Problem], seed: int) -> int:
    """Its own, so that batches that are written one call at a time do not all make the same draws."""
    text = "/".join([str(seed), *(problem.id for problem in some)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _trace(subject: Subject, problem: Problem, ids: list[int]) -> Trace:
    response = _decoded(subject, ids)
    if not response.strip():
        raise HeadscopeError(f"{subject.name} wrote nothing for {problem.id}: choose another seed or temperature.")
    return Trace(
        id=problem.id,
        prompt="",
        response=response,
        question=problem.question,
        answer=problem.answer,
        correct=is_right(problem, response),
        drawn=() if _encoded(subject, response)["input_ids"] == ids else tuple(ids),
    )


def _response(subject: Subject, trace: Trace) -> tuple[list[int], list[str]]:
    if trace.drawn and _decoded(subject, trace.drawn) == trace.response:
        return list(trace.drawn), _cut(trace.response, _ends(subject, trace.drawn))
    encoded = _encoded(subject, trace.response)
    return list(encoded["input_ids"]), _cut(trace.response, [int(end) for _, end in encoded["offset_mapping"]])


def _encoded(subject: Subject, response: str) -> Any:
    if not getattr(subject.tokenizer, "is_fast", False):
        raise HeadscopeError(
            f"The tokenizer of {subject.name} gives no character offsets, which a trace is shown by: "
            "use its fast version (tokenizer.json)."
        )
    return subject.tokenizer(response, add_special_tokens=False, return_offsets_mapping=True)


def _decoded(subject: Subject, ids: Sequence[int]) -> str:
    """The text that tokens spell, their blanks untouched."""
    return str(subject.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _ends(subject: Subject, ids: Sequence[int]) -> list[int]:
    """How many whole characters the tokens up to each spell; a blank that opens a text may be spelt otherwise."""
    found, whole = [], 0
    for i in range(len(ids)):
        start = max(0, i - AROUND)
        before, behind = (_decoded(subject, ids[start:stop]).rstrip(UNFINISHED) for stop in (i, i + 1))
        whole += len(behind) - len(before)
        found.append(whole)
    return found


def _cut(text: str, ends: Sequence[int]) -> list[str]:
    """The text in as many pieces as there are ends, each up to its end and the last to the end of the text."""
    found, start = [], 0
    for end in [*ends[:-1], len(text)] if ends else []:
        found.append(text[start:end])
        start = max(start, end)
    return found
