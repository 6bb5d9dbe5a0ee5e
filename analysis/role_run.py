"""What is every head for? One table of roles, from a request to a finished run.

    headscope heads --model smollm2-135m        # or python -m analysis.role_run --model smollm2-135m

The prompts are those of analysis.role_cases, roles and thresholds those of analysis.roles.
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.display import Handling, report
from analysis.needles import Case
from analysis.needles import build as build_needle
from analysis.ranking import run_scores
from analysis.retrieval import head_frame
from analysis.role_cases import RoleCase, evidence_of, examine, role_cases, scores_of
from analysis.roles import ROLES, Role, carried, halves, needle_absent, summarise
from analysis.runs import OpenRun, Run, find_run
from analysis.study import GRIDS, ModelChoice, prompts_fit, work_through
from analysis.uncertainty import CONFIDENCE
from probes.errors import HeadscopeError
from probes.memory import forward_bytes
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject

RETRIEVAL = "retrieval_score"
CORRECTION = (
    "intervals are over prompts, for each head alone: not corrected for many heads; the halves of the needle cases "
    "share their needles"
)


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    model: str | None
    grid: str
    count: int | None
    thresholds: str | None
    heads_from: str | None
    device: str | None
    dtype: str | None
    seed: int


def heads(asked: Asked, handling: Handling) -> Run | None:
    """Say what every head is for; returns the finished run, or None for a dry run."""
    roles = with_thresholds(asked.thresholds)
    source = find_run(asked.heads_from, handling.out, command="retrieval") if asked.heads_from else None
    if source is not None and source.manifest["command"] != "retrieval":
        raise HeadscopeError(f"{source.id} is not a retrieval run: --heads-from takes one that scored the heads.")
    choice = ModelChoice(asked.model or DEFAULT_MODEL, asked.device, asked.dtype)
    subject = choice.load()
    scores = _scores(source, subject) if source is not None else None
    cases = role_cases(subject, asked.grid, count=asked.count, needles=source is None, seed=asked.seed)
    new_tokens = GRIDS[asked.grid].new_tokens
    _rehearse(subject, cases)
    longest = max(getattr(case, "length", 0) for case in cases)
    dtype = next(subject.model.parameters()).dtype
    each = forward_bytes(subject.anatomy, longest, dtype=dtype, steps=new_tokens)
    if not prompts_fit(subject, len(cases), longest, each, handling):
        return None
    facts = {
        **asdict(asked),
        "model": choice.model,
        "thresholds": {role.name: role.threshold for role in roles},
        "heads_from": source.id if source is not None else None,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "case_ids": [case.id for case in cases],
    }
    with OpenRun.start(handling.out, "heads", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=len(cases))
            worked = work_through(
                run, cases, subject, choice, partial(examine, new_tokens=new_tokens),
                workers=handling.workers, title="looking at heads", quiet=handling.as_json,
            )  # fmt: skip
            evidence = evidence_of(worked.records)
            if scores is not None:
                evidence[RETRIEVAL] = scores
            summary = {
                **summary_of(worked.records, evidence, roles, seed=asked.seed),
                "retrieval_from": facts["heads_from"],
            }
            run.finish(heads=head_frame(evidence, seed=asked.seed), summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


def with_thresholds(text: str | None) -> tuple[Role, ...]:
    """The roles, with other thresholds such as `do-nothing=0.01,induction=0.4`.

    Raises HeadscopeError for a role that there is none of, and for what is no number from 0 to 1.
    """
    chosen = {role.name: role for role in ROLES}
    for term in (text or "").split(","):
        name, _, number = (part.strip() for part in term.partition("="))
        if not term.strip():
            continue
        if name not in chosen:
            raise HeadscopeError(f"--thresholds: there is no role {name!r}: choose among {', '.join(chosen)}.")
        try:
            threshold = float(number)
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise HeadscopeError(f"--thresholds: {term.strip()!r} names no number from 0 to 1: write {name}=0.3.")
        chosen[name] = replace(chosen[name], threshold=threshold)
    return tuple(chosen.values())


def summary_of(
    records: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, NDArray[np.float64]],
    roles: Sequence[Role] = ROLES,
    *,
    seed: int,
) -> dict[str, Any]:
    """The answers of a run, as plain data."""
    kinds = Counter(record["kind"] for record in records)
    layers, heads_each = np.shape(evidence["write"])[1:]
    return {
        "n_cases": len(records),
        "counts": {
            **{kind: kinds[kind] for kind in ("natural", "repeated", "needle")},
            "answered": sum(record.get("passed", False) for record in records),
        },
        "confidence": CONFIDENCE,
        "correction": CORRECTION,
        "n_heads": layers * heads_each,
        **summarise(evidence, roles, seed=seed),
        "needle_absent": _needle_absent(evidence, roles, seed),
    }


def _needle_absent(
    evidence: Mapping[str, NDArray[np.float64]], roles: Sequence[Role], seed: int
) -> dict[str, Any] | None:
    first, second = halves(evidence)
    if RETRIEVAL not in first or "sink_absent" not in second:
        return None
    retrieval = carried(first, roles)["retrieval"]
    return needle_absent(second["sink_present"], second["sink_absent"], retrieval, seed=seed)


def _scores(source: Run, subject: Subject) -> NDArray[np.float64]:
    """Retrieval scores (case, layer, head). Raises HeadscopeError where the run is of another model or has none."""
    run_scores(source, subject)
    return scores_of(source.cases(), subject.anatomy.layers, subject.anatomy.query_heads)


def _rehearse(subject: Subject, cases: Sequence[RoleCase]) -> None:
    """Build the shortest prompt around each needle: one that can't be built is refused before the work begins."""
    needles = [case for case in cases if isinstance(case, Case)]
    for triple in dict.fromkeys(case.triple for case in needles):
        build_needle(subject, min((case for case in needles if case.triple == triple), key=lambda case: case.length))


if __name__ == "__main__":
    from analysis.cli import main

    main(["heads", *sys.argv[1:]])
