"""Does reasoning have a rhythm: a token that plans, then one that later reasoning leans on?

    headscope rhythm --count 40        # or python -m analysis.rhythm.rhythm_run --count 40

Each trace is read teacher-forced in one forward. Heads are chosen on one half of the traces and judged on the other.
Li et al., "Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy
Optimization", 2025.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.display import Handling, report
from analysis.rhythm.credit_of_run import Export, export_credit
from analysis.rhythm.perturbation import ROWS
from analysis.rhythm.rhythm_summary import head_table, summarise
from analysis.rhythm.sensitivity import further_windows
from analysis.rhythm.settings import (
    LEAST_TOKENS,
    Setting,
    as_facts,
    check_heads_suffice,
    horizons_for,
    layers_for,
    rule_for,
)  # fmt: skip
from analysis.rhythm.trace_source import longest_of, source_for, traces_of
from analysis.rhythm.traces import BATCH, Trace, tokenise
from analysis.rhythm.tracing import Tracing, examine
from analysis.runs import OpenRun, Run
from analysis.study import ModelChoice, prompts_fit, work_through
from probes.errors import HeadscopeError
from probes.memory import forward_bytes
from probes.subject import Subject


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else. perturb: traces on which other tokens are forced."""

    model: str
    traces: Path | None
    write: bool
    count: int | None
    temperature: float | None
    new_tokens: int | None
    window: int
    horizon: str
    share: float
    layers: str
    exclude_sink: bool
    peaks: str | None
    perturb: int
    sensitivity: bool
    device: str | None
    dtype: str | None
    seed: int


def rhythm(asked: Asked, handling: Handling, *, export: Export | None = None) -> Run | None:
    """Read the traces and judge their rhythm; returns the finished run, or None for a dry run."""
    horizons, rule = horizons_for(asked.horizon), rule_for(asked.peaks)
    setting = Setting(asked.window, asked.horizon, asked.share, layers_for(asked.layers), asked.exclude_sink)
    windows = further_windows(asked.window) if asked.sensitivity else ()
    source = source_for(
        asked.model, asked.traces, write=asked.write, count=asked.count, temperature=asked.temperature,
        new_tokens=asked.new_tokens,
    )  # fmt: skip
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and a trace is read token by token.")
    check_heads_suffice(setting, subject.anatomy)
    least = max(asked.window, LEAST_TOKENS)
    if source.given is not None:
        _sorted_out(subject, source.given, least)  # traces that are all too short are refused now
    longest = longest_of(subject, source)
    rows = max(1 if source.given is not None else BATCH, ROWS if asked.perturb else 1)
    each = _bytes(subject, longest, curves=1 + len(horizons) + len(windows), rows=rows)
    if not prompts_fit(subject, source.count, longest, each, handling):
        return None
    facts = {**asdict(asked), "traces": str(asked.traces) if asked.traces else None, "peaks": str(rule),
             "device": subject.device.type, "dtype": subject.dtype, "sha256": subject.sha256,
             "texts": source.digest()}  # fmt: skip
    with OpenRun.start(handling.out, "rhythm", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe())
            traces = traces_of(run, subject, source, seed=asked.seed, quiet=handling.as_json)
            long_enough, left_out = _sorted_out(subject, traces, least)
            run.note(total_cases=len(long_enough))
            cases = [Tracing(i, trace, i < asked.perturb) for i, trace in enumerate(long_enough)]
            worked = work_through(
                run, cases, subject, choice,
                partial(examine, setting=setting, horizons=horizons, windows=windows,
                        arrays=run.run.path / "arrays"),
                workers=handling.workers, title="reading traces", quiet=handling.as_json,
            )  # fmt: skip
            with Console(stderr=True, quiet=handling.as_json).status("judging the couplings"):
                found = summarise(worked.records, run.run.path / "arrays", setting, rule, horizons=list(horizons),
                                  vary=asked.sensitivity, seed=asked.seed)  # fmt: skip
            summary = {
                **found,
                "horizons": as_facts(horizons),
                "left_out": left_out,
                "written": {"temperature": source.temperature, "new_tokens": source.new_tokens}
                if source.given is None
                else None,
            }
            run.finish(heads=head_table(worked.records, seed=asked.seed), summary=summary, **worked.cost)
    if export is not None:
        export_credit(run.run, export)
    report(run.run, handling)
    return run.run


def _sorted_out(subject: Subject, traces: Sequence[Trace], least: int) -> tuple[list[Trace], list[dict[str, Any]]]:
    """Traces to read, and those whose response is too short to have a rhythm. Raises HeadscopeError if all are."""
    lengths = [len(tokenise(subject, trace).response) for trace in traces]
    long_enough = [trace for trace, length in zip(traces, lengths, strict=True) if length >= least]
    left_out = [
        {"case": trace.id, "tokens": length} for trace, length in zip(traces, lengths, strict=True) if length < least
    ]
    if not long_enough:
        raise HeadscopeError(
            f"None of the {len(traces)} traces has a response of at least {least} tokens: give longer ones, or a "
            "smaller --window."
        )
    return long_enough, left_out


def _bytes(subject: Subject, longest: int, *, curves: int, rows: int) -> int:
    """What a trace takes beside the weights: a forward with what is kept of every head, or a batch that is written."""
    anatomy, dtype = subject.anatomy, next(subject.model.parameters()).dtype
    forward = forward_bytes(anatomy, longest, dtype=dtype)
    return max(forward + 3 * curves * len(anatomy.heads()) * longest * 4, rows * forward)


if __name__ == "__main__":
    from analysis.cli import main

    main(["rhythm", *sys.argv[1:]])
