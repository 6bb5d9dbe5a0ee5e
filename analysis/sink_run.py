"""Where is attention parked, what is carried there, and which heads do nothing?

    headscope sinks --model smollm2-135m        # or python -m analysis.sink_run --model smollm2-135m

Each prompt is one forward. The heads are judged on natural text that begins as the model's tokenizer has it; the other
kinds of prompt, and both beginnings, stand beside them.
"""

import hashlib
import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from analysis import massive
from analysis.commands import whole_numbers
from analysis.display import Handling, report
from analysis.runs import OpenRun, Run, rounded
from analysis.sink_cases import SinkCase, build, own_cases, own_habit, sink_cases
from analysis.sink_summary import metric_frame, metric_table, summarise
from analysis.sinks import find_sinks, per_head, sink_heads, value_lengths
from analysis.study import ModelChoice, prompts_fit, work_through
from probes.activation_reader import TOP, ActivationReader
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.memory import forward_bytes
from probes.sink_reader import PER_HEAD_KEY, SinkReader
from probes.subject import Subject
from probes.tap import Tap

EXCERPT = 12  # first tokens of a prompt that its record shows
LOOKED_AT = 1024  # entries of a hidden state, the largest first, among which the massive ones are: they are few


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    model: str
    grid: str
    lengths: str | None
    count: int | None
    cases: Path | None
    device: str | None
    dtype: str | None
    seed: int


def sinks(asked: Asked, handling: Handling) -> Run | None:
    """Find the sinks; returns the finished run, or None for a dry run."""
    lengths = whole_numbers(asked.lengths, "--lengths") if asked.lengths is not None else None
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and the prompts are made of its tokens.")
    if asked.cases:
        cases = own_cases(subject, asked.cases, lengths=lengths, count=asked.count, seed=asked.seed)
    else:
        cases = sink_cases(subject, asked.grid, lengths=lengths, count=asked.count, seed=asked.seed)
    prompts = [build(subject, case).tolist() for case in cases]  # one that can't be built is refused now
    longest = max(map(len, prompts))
    kept = len(PER_HEAD_KEY) * len(subject.anatomy.heads()) * longest * 4
    each = forward_bytes(subject.anatomy, longest, dtype=next(subject.model.parameters()).dtype) + 3 * kept
    if not prompts_fit(subject, len(cases), longest, each, handling):
        return None
    facts = {**asdict(asked), "cases": str(asked.cases) if asked.cases else None, "device": subject.device.type,
             "dtype": subject.dtype, "sha256": subject.sha256, "case_ids": [case.id for case in cases],
             "texts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()}  # fmt: skip
    with OpenRun.start(handling.out, "sinks", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=len(cases))
            worked = work_through(
                run, cases, subject, choice, examine,
                workers=handling.workers, title="looking for sinks", quiet=handling.as_json,
            )  # fmt: skip
            first, habit = cases[0].kind, own_habit(subject)
            judged = [record for record in worked.records if (record["kind"], record["bos"]) == (first, habit)]
            frame = metric_frame(metric_table(judged), seed=asked.seed)
            summary = {
                **summarise(worked.records, frame, judged, seed=asked.seed),
                "bos": {"token": subject.tokenizer.bos_token, "by_itself": habit},
                "massive": massive.summarise([record["activations"] for record in judged], seed=asked.seed),
            }
            run.finish(heads=frame, summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


@torch.inference_mode()
def examine(subject: Subject, case: SinkCase) -> dict[str, Any]:
    """One prompt's sinks, and every metric of every head."""
    ids = build(subject, case)
    reader, activations = SinkReader(), ActivationReader(top=LOOKED_AT)
    with Tap(subject, readers=[reader, activations]):
        subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    found = reader.found()
    sinks = find_sinks(found["received"], found["seen_by"])
    tokens = [subject.tokenizer.decode([token]) for token in ids.tolist()]
    marks = delimiters(subject, ids.tolist(), tokens)
    record = {
        "case": case.id,
        "kind": case.kind,
        "bos": case.bos,
        "length": case.length,
        "tokens": len(ids),
        "ids": ids.tolist(),
        "excerpt": tokens[:EXCERPT],
        "sinks": sink_facts(found, sinks, tokens),
        "delimiter_keys": float(np.mean(marks[1:])),
        "per_head": {
            name: values.transpose("layer", "head").values.tolist()
            for name, values in per_head(found, sinks, marks).items()
        },
        "activations": [shortened(row) for row in massive.record(activations, tokens)],
    }
    return {name: rounded(value) for name, value in record.items()}


def sink_facts(found: xr.Dataset, sinks: xr.DataArray, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Each sink of a prompt: how many heads park there, and over all heads the means of what it receives and carries.

    value_ratio is its ||v W_O|| by the median of the keys that are no sinks.
    """
    parked = sink_heads(found["received"], found["seen_by"]).values
    received = found["received"].mean(("layer", "head")).values
    values = value_lengths(found["value_norm"], sinks).mean(("layer", "head")).values
    return [
        {"position": key, "token": tokens[key], "heads": float(parked[key]), "received": float(received[key]),
         "value_ratio": float(values[key])}
        for key in np.flatnonzero(sinks.values).tolist()
    ]  # fmt: skip


def shortened(row: dict[str, Any]) -> dict[str, Any]:
    """A row of massive.record with the entries that are massive and the next ones, of all that were looked at."""
    if "entries" not in row:
        return row
    bound = max(massive.MASSIVE_SIZE, massive.MASSIVE_RATIO * row["median"])
    above = sum(abs(entry["value"]) >= bound for entry in row["entries"])
    return {**row, "entries": row["entries"][: max(TOP, above + 1)]}


def delimiters(subject: Subject, ids: Sequence[int], tokens: Sequence[str]) -> list[bool]:
    """Which tokens are punctuation and white space only."""
    special = {*subject.tokenizer.all_special_ids}
    return [
        number not in special and bool(token) and all(unicodedata.category(sign)[0] in "PZC" for sign in token)
        for number, token in zip(ids, tokens, strict=True)
    ]


if __name__ == "__main__":
    from analysis.cli import main

    main(["sinks", *sys.argv[1:]])
