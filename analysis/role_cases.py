"""The prompts that show what heads do, and what each of them tells of every head.

    natural prose     where attention is parked, how much a head writes, how near it looks
    random tokens     said twice: what a head looks at from the second copy
    needle cases      what a head copies while the model answers, and how much it looks at sinks meanwhile

A needle case is asked once more with the needle left out: Wu et al. ask what a retrieval head looks at that finds
nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from xarray import DataArray

from analysis import sink_cases
from analysis.needles import PASS_RECALL, Case, answer_recall, grid, spread, triples
from analysis.needles import build as build_needle
from analysis.retrieval import copied_tokens, retrieval_score
from analysis.sink_cases import SinkCase
from analysis.sinks import LOCAL, SINK_THRESHOLD, find_sinks, previous_share
from analysis.study import GRIDS, case_record
from analysis.tasks.copying import Copying, CopyingExample, repeated
from probes.errors import HeadscopeError
from probes.generation import check_length, greedy, last_logits
from probes.pattern_reader import PatternReader
from probes.prompt import Prompt
from probes.readers import NeedleReader
from probes.sink_reader import SinkReader
from probes.subject import Subject
from probes.tap import Reader, Tap

NATURAL_TOKENS = 512
COPY_TOKENS = 64
COUNTS = {"quick": 16, "standard": 32, "full": 64}  # natural prompts, and as many of random tokens

RoleCase = SinkCase | CopyingExample | Case
Found = Mapping[str, DataArray | Tensor | NDArray[np.float64]]  # metric to (layer, head)


@dataclass(frozen=True)
class Decoded:
    """What the model answered, and where every head looked hardest and how much at sinks, step by step."""

    tokens: list[int]
    sinks: list[int]
    top: Int[Tensor, "step layer head"]
    sink_share: NDArray[np.float64]


def role_cases(subject: Subject, size: str, *, count: int | None, needles: bool, seed: int) -> list[RoleCase]:
    """Every case of a grid, which ends where the model's window does.

    count: natural prompts, and as many of random tokens, instead of the grid's. needles: whether to add needle cases.
    Raises HeadscopeError for an unknown grid, and for a model without a tokenizer.
    """
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and the prompts are made of its tokens.")
    if size not in GRIDS:
        raise HeadscopeError(f"There is no grid {size!r}: choose {', '.join(GRIDS)}.")
    wanted, shape = count or COUNTS[size], GRIDS[size]
    context = subject.anatomy.context or shape.longest + shape.new_tokens
    length = min(NATURAL_TOKENS, context)
    sink_cases.check_lengths(subject, [length])
    bos = sink_cases.own_habit(subject)
    found: list[RoleCase] = [SinkCase("natural", bos, length, index, seed) for index in range(wanted)]
    found += Copying(min(COPY_TOKENS, (context - 1) // 2)).examples(subject, count=wanted, seed=seed)
    if needles:
        longest = min(shape.longest, context - shape.new_tokens)
        lengths = spread(min(shape.shortest, longest), longest, shape.lengths)
        found += grid(triples("detect"), lengths, spread_depths(shape.depths), seed=seed)
    return found


def spread_depths(count: int) -> list[float]:
    return [round(depth, 6) for depth in np.linspace(0, 1, count).tolist()]


@torch.inference_mode()
def examine(subject: Subject, case: RoleCase, *, new_tokens: int) -> dict[str, Any]:
    """What one case shows: a result line whose `evidence` is metric to a number for each layer and head."""
    match case:
        case SinkCase():
            return _natural(subject, case)
        case CopyingExample():
            return _copied(subject, case)
        case Case():
            return _needle(subject, case, new_tokens)


def _natural(subject: Subject, case: SinkCase) -> dict[str, Any]:
    ids = sink_cases.build(subject, case)
    looks = PatternReader({"near": range(LOCAL)}, first=LOCAL)
    sinks = SinkReader()
    _forward(subject, ids, [sinks, looks])
    found = sinks.found()
    parked = _sinks(sinks)
    evidence: Found = {
        "sink_rate": (found["received"].isel(key=parked) > SINK_THRESHOLD).any("key"),
        "write": found["write"],
        "local": looks.share("near", without=parked),
        "previous": previous_share(found["distances"], found["received_sum"]),
    }
    return _record(case.id, "natural", ids, evidence, sinks=parked)


def _copied(subject: Subject, case: CopyingExample) -> dict[str, Any]:
    prompt = repeated(subject, case.tokens)
    length = len(case.tokens)
    looks = PatternReader(
        {"induction": range(length - 1, length), "duplicate": range(length, length + 1)},
        first=prompt.spans["second"][0],
    )
    _forward(subject, prompt.ids, [looks])
    evidence: Found = {name: looks.mass(name) for name in ("induction", "duplicate")}
    return _record(case.id, "repeated", prompt.ids, evidence)


def _needle(subject: Subject, case: Case, new_tokens: int) -> dict[str, Any]:
    prompt, bare = build_needle(subject, case), build_needle(subject, case, needle=False)
    check_length(subject, len(prompt), new_tokens)
    present = _answer(subject, prompt, new_tokens)
    absent = _answer(subject, bare, max(1, len(present.tokens)))  # over as many steps
    answer, ids = prompt.spans["answer"], prompt.ids.tolist()
    scores = np.zeros((subject.anatomy.layers, subject.anatomy.query_heads))
    for head, found in copied_tokens(present.top.numpy(), ids, present.tokens, answer).items():
        scores[head.layer, head.head] = retrieval_score(found, ids, answer)
    evidence: Found = {"retrieval_score": scores, "sink_present": present.sink_share, "sink_absent": absent.sink_share}
    said, said_without = (
        subject.tokenizer.decode(decoded.tokens, skip_special_tokens=True).strip() for decoded in (present, absent)
    )
    recall = answer_recall(said, case.triple.answer)
    return {
        **case_record(subject, case, len(prompt), prompt.spans["needle"]),
        **_record(case.id, "needle", prompt.ids, evidence, sinks=present.sinks),
        "response": said,
        "response_without": said_without,
        "recall": round(recall, 6),
        "passed": recall > PASS_RECALL,
    }


def _answer(subject: Subject, prompt: Prompt, new_tokens: int) -> Decoded:
    """Read the prompt but for its last token, find the sinks in it, and answer; heads are read while decoding."""
    cache = DynamicCache(config=subject.model.config)
    prefilled = SinkReader()
    _forward(subject, prompt.ids[:-1], [prefilled], past_key_values=cache, use_cache=True)
    sinks = _sinks(prefilled)
    reader = NeedleReader(sinks)
    with Tap(subject, readers=[reader]):
        tokens = greedy(subject, cache, int(prompt.ids[-1]), new_tokens)
    return Decoded(tokens, sinks, reader.top_positions(), reader.needle_mass().double().mean(0).numpy())


def _sinks(reader: SinkReader) -> list[int]:
    """Positions of the sinks of a prompt, its first token among them in any case."""
    found = reader.found()
    keys = np.flatnonzero(find_sinks(found["received"], found["seen_by"]).values)
    return sorted({0, *keys.tolist()})


def _forward(subject: Subject, ids: Int[Tensor, " n"], readers: Sequence[Reader], **options: Any) -> None:
    with Tap(subject, readers=readers):
        subject.model(input_ids=ids[None].to(subject.device), **{"use_cache": False, **last_logits(subject), **options})


def _record(case: str, kind: str, ids: Int[Tensor, " n"], evidence: Found, **facts: Any) -> dict[str, Any]:
    kept = {
        metric: [[float(f"{x:.6g}") for x in row] for row in np.asarray(values, dtype=float).tolist()]
        for metric, values in evidence.items()
    }
    return {"case": case, "kind": kind, "tokens": len(ids), "evidence": kept, **facts}


def evidence_of(records: Iterable[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Metric to (case, layer, head); needle cases count where they were answered, as in the paper."""
    together: dict[str, list[Any]] = {}
    for record in records:
        if record.get("passed", True):
            for metric, values in record["evidence"].items():
                together.setdefault(metric, []).append(values)
    return {metric: np.array(values) for metric, values in together.items()}


def scores_of(records: Iterable[Mapping[str, Any]], layers: int, heads: int) -> NDArray[np.float64]:
    """Retrieval scores (case, layer, head) from the answered cases of a retrieval run."""
    passed = [record for record in records if record["passed"]]
    scores = np.zeros((len(passed), layers, heads))
    for i, record in enumerate(passed):
        for head, score in record["scores"].items():
            layer, index = map(int, head.split("-"))
            scores[i, layer, index] = score
    return scores
