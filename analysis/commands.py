"""What the verbs `retrieval` and `ablate` do, from a request to a finished run and a table on the screen."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import ablation as ablating
from analysis import retrieval as retrieving
from analysis.calibration import CALIBRATION_TOKENS, calibrate
from analysis.display import Handling, console, report
from analysis.interventions import MEANINGS, PHASES, Meaning
from analysis.needles import Case, Triple, build, grid, haystack, load_triples, spread, triples
from analysis.ranking import run_scores
from analysis.runs import OpenRun, Run, find_run, write_json, writing
from analysis.study import GRIDS, ModelChoice, work_through, workers_bytes
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.heads import Head, check_heads, parse_heads
from probes.memory import check_fits, forward_bytes
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject


@dataclass(frozen=True)
class Request:
    """What was asked: everything that changes the results, and nothing else."""

    model: str | None
    grid: str
    lengths: str | None
    depths: str | None
    cases: Path | None
    haystack: str | None
    new_tokens: int | None
    device: str | None
    dtype: str | None
    seed: int
    role: str


@dataclass(frozen=True)
class _Work:
    subject: Subject
    choice: ModelChoice
    cases: list[Case]
    new_tokens: int
    facts: dict[str, Any]


def retrieval(request: Request, handling: Handling) -> Run | None:
    """Score the heads; returns the finished run, or None for a dry run."""
    work = _prepare(request)
    if not _fits(work, handling, branches=1):
        return None
    examine = partial(retrieving.examine, new_tokens=work.new_tokens)
    with OpenRun.start(handling.out, "retrieval", work.facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=work.subject.describe(), total_cases=len(work.cases))
            worked = work_through(
                run, work.cases, work.subject, work.choice, examine,
                workers=handling.workers, title="scoring heads", quiet=handling.as_json,
            )  # fmt: skip
            layers, heads = work.subject.anatomy.layers, work.subject.anatomy.query_heads
            table = retrieving.score_table(worked.records, layers, heads)
            frame = retrieving.head_frame(table, seed=request.seed)
            with writing(run.run.path):
                write_json(run.run.path / "head_scores.json", retrieving.raw_scores(worked.records, layers, heads))
            summary = retrieving.summarise(worked.records, frame, table)
            run.finish(heads=frame, summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


def ablate(
    request: Request,
    handling: Handling,
    *,
    heads_from: str,
    heads: str | None,
    top: str,
    controls: int,
    meanings: str | None,
    phases: str,
) -> Run | None:
    """Silence heads and judge; returns the finished run, or None for a dry run."""
    chosen_meanings = _among(meanings or ",".join(MEANINGS), MEANINGS, "--meaning")
    chosen_phases = _among(phases, tuple(PHASES), "--phase")
    named = parse_heads(heads) if heads is not None else []
    source: Run | None = None
    if not named or heads_from != "last":
        source = find_run(heads_from, handling.out, command="retrieval")
        if source.manifest["command"] != "retrieval":
            raise HeadscopeError(f"{source.id} is not a retrieval run: --heads-from takes one that ranked the heads.")
        model = source.manifest["model"]
        request = replace(request, model=request.model or model["name"], dtype=request.dtype or model["dtype"])
    work = _prepare(request)
    anatomy = work.subject.anatomy
    check_heads(named, anatomy.layers, anatomy.query_heads)
    ranked, protected = anatomy.heads(), frozenset[Head]()
    if source is not None:
        ranked, protected = _ranking(source, work)
    ks = [len(named)] if named else whole_numbers(top, "--top")
    ranked = [*named, *(head for head in ranked if head not in named)]
    chosen_meanings = _possible(chosen_meanings, anatomy, asked=meanings is not None)
    tests = ablating.conditions(
        ranked, protected, ks=ks, seeds=controls, meanings=chosen_meanings, phases=chosen_phases, seed=request.seed
    )
    if not _fits(work, handling, branches=1 + len(tests)):
        return None
    facts = {**work.facts, "heads_from": source.id if source else None, "heads": [str(head) for head in named],
             "top": ks, "controls": controls, "meanings": chosen_meanings, "phases": chosen_phases}  # fmt: skip
    means = None
    if "query_mean" in chosen_meanings:
        length = max(CALIBRATION_TOKENS, work.cases[0].length)
        means, facts["calibration"] = calibrate(work.subject, length, seed=request.seed)
    examine = partial(ablating.examine, tests=tests, means=means, new_tokens=work.new_tokens)
    with OpenRun.start(handling.out, "ablation", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=work.subject.describe(), total_cases=len(work.cases))
            worked = work_through(
                run, work.cases, work.subject, work.choice, examine,
                workers=handling.workers, title="silencing heads", quiet=handling.as_json,
            )  # fmt: skip
            summary = {
                **ablating.summarise(worked.records, tests, seed=request.seed),
                "heads_from": facts["heads_from"] or "heads named by hand",
                "ranked": [str(head) for head in ranked[: max(ks)]],
                "protected": [str(head) for head in sorted(protected)],
                "sets": {test.name: [str(head) for head in test.heads] for test in tests},
            }
            run.finish(heads=None, summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


def _ranking(source: Run, work: _Work) -> tuple[list[Head], frozenset[Head]]:
    """The heads of a retrieval run, strongest first, and those at or above the threshold.

    Raises HeadscopeError where it ranked nothing, or another model's heads, or by the very cases that are to judge.
    """
    scores, protected = run_scores(source, work.subject)
    seen = {(case["question"], case["answer"]) for case in source.cases()}
    if both := [case.triple.key for case in work.cases if (case.triple.question, case.triple.answer) in seen]:
        raise HeadscopeError(
            f"The case {both[0]} also chose the heads in the run {source.id}: judge them on other --cases."
        )
    return retrieving.rank_heads(scores.frame), protected


def _possible(meanings: list[Meaning], anatomy: Anatomy, *, asked: bool) -> list[Meaning]:
    """The meanings without query_mean where nobody asked for it by name and the model's queries can't be replaced."""
    if "query_mean" not in meanings:
        return meanings
    try:
        for layer in anatomy.decoder:
            layer.query_projection()
    except HeadscopeError as error:
        if asked:
            raise
        Console(stderr=True).print(f"query_mean is left out: {error}")
        return [meaning for meaning in meanings if meaning != "query_mean"]
    return meanings


def _prepare(request: Request) -> _Work:
    if request.grid not in GRIDS:
        raise HeadscopeError(f"There is no grid {request.grid!r}: choose {', '.join(GRIDS)}.")
    size = GRIDS[request.grid]
    lengths = whole_numbers(request.lengths, "--lengths") if request.lengths is not None else None
    depths = _numbers(request.depths, "--depths") if request.depths is not None else None
    if depths is None:
        depths = [round(i / (size.depths - 1), 6) for i in range(size.depths)]
    chosen = load_triples(request.cases) if request.cases else triples("judge" if request.role == "judge" else "detect")
    if request.haystack is not None:
        chosen = [replace(triple, haystack=request.haystack) for triple in chosen]
    for triple in chosen:
        haystack(triple.haystack)
    new_tokens = request.new_tokens or size.new_tokens
    cases = grid(chosen, lengths or spread(size.shortest, size.longest, size.lengths), depths, seed=request.seed)
    choice = ModelChoice(request.model or DEFAULT_MODEL, request.device, request.dtype)
    subject = choice.load()
    if lengths is None and subject.anatomy.context:
        # A named grid ends where the model's window does; lengths asked for by number are taken at their word.
        end = min(size.longest, subject.anatomy.context - new_tokens)
        cases = grid(chosen, spread(min(size.shortest, end), end, size.lengths), depths, seed=request.seed)
    longest = max(cases, key=lambda case: case.length)
    check_length(subject, longest.length, new_tokens)
    for triple in chosen:  # a prompt that can't be built is refused now, not in the middle of the work
        own = [case for case in cases if case.triple == triple]
        build(subject, min(own, key=lambda case: case.length))
        build(subject, max(own, key=lambda case: case.length))
    facts = {
        **asdict(request),
        "cases": str(request.cases) if request.cases else None,
        "model": choice.model,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "new_tokens": new_tokens,
        "texts": _digest(chosen),
        "case_ids": [case.id for case in cases],
    }
    return _Work(subject, choice, cases, new_tokens, facts)


def _digest(chosen: Sequence[Triple]) -> str:
    """One hash for the texts of the cases, so that a run isn't resumed after a user's file has changed."""
    texts = [[asdict(triple), haystack(triple.haystack)] for triple in chosen]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _fits(work: _Work, handling: Handling, *, branches: int) -> bool:
    """Refuse what would not fit; for a dry run say what it would take, and stop."""
    longest = max(case.length for case in work.cases)
    dtype = next(work.subject.model.parameters()).dtype
    needed = forward_bytes(work.subject.anatomy, longest, dtype=dtype, branches=branches, steps=work.new_tokens)
    needed = workers_bytes(work.subject, needed, handling.workers)
    check_fits(needed, work.subject.device, f"{len(work.cases)} cases of up to {longest} tokens")
    if handling.dry_run and handling.as_json:
        print(json.dumps({"cases": len(work.cases), "longest": longest, "answers": branches,
                          "bytes_beside_the_weights": needed}))  # fmt: skip
    elif handling.dry_run:
        console.print(
            f"{len(work.cases)} cases of {min(case.length for case in work.cases)} to {longest} tokens on "
            f"{work.subject.name} ({work.subject.dtype}, {work.subject.device}), {branches} answers each; about "
            f"{needed / 1e9:.1f} GB beside the weights. Nothing was run."
        )
    return not handling.dry_run


def _among(text: str, allowed: Sequence[str], option: str) -> list[Any]:
    chosen = [word.strip() for word in text.split(",") if word.strip()]
    for word in chosen:
        if word not in allowed:
            raise HeadscopeError(f"{option}: {word!r} is none of {', '.join(allowed)}.")
    if not chosen:
        raise HeadscopeError(f"{option} is empty: choose among {', '.join(allowed)}.")
    return list(dict.fromkeys(chosen))


def whole_numbers(text: str, option: str) -> list[int]:
    numbers = _numbers(text, option)
    if any(not number.is_integer() or number < 1 for number in numbers):
        raise HeadscopeError(f"{option} takes whole numbers from 1 on, separated by commas, and not {text!r}.")
    return [int(number) for number in numbers]


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise HeadscopeError(f"{option} takes numbers separated by commas, and not {text!r}.") from None
    if not numbers:
        raise HeadscopeError(f"{option} is empty: give at least one number.")
    return sorted(dict.fromkeys(numbers))
