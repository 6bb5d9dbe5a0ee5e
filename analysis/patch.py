"""Which heads carry what makes two prompts end differently? Patch every head, from a request to a finished run.

    headscope patch --clean "The capital of France is" --corrupt "The capital of Japan is" \\
        --answer " Paris" --wrong " Tokyo"

A layer is a case of the run. Beside the effect of each patch (analysis.patching) stands what the head itself writes
into the difference of logits in the clean prompt (analysis.attribution): a head can do much through later ones and
write little, or write much that others make up for.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from analysis.attribution import attribute
from analysis.display import Handling, console, report
from analysis.patching import BATCH, Contrast, Where, contrast, patch_layer
from analysis.runs import OpenRun, Run
from analysis.study import ModelChoice, work_through
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.memory import check_fits, forward_bytes
from probes.prompt import Part, chat_prompt, encode
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject

TOP = 10


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    where: str
    layers: str | None
    chat: bool
    model: str | None
    device: str | None
    dtype: str | None


@dataclass(frozen=True)
class Layer:
    """The heads of one layer."""

    index: int

    @property
    def id(self) -> str:
        return f"L{self.index}"


def patch(asked: Asked, handling: Handling) -> Run | None:
    """Patch every head and attribute the clean logits; returns the finished run, or None for a dry run."""
    where = _where(asked.where)
    choice = ModelChoice(asked.model or DEFAULT_MODEL, asked.device, asked.dtype)
    subject = choice.load()
    layers = [Layer(index) for index in _layers(asked.layers, subject.anatomy.layers)]
    clean, corrupt = (_prompt(subject, name, getattr(asked, name), asked.chat) for name in ("clean", "corrupt"))
    answer, wrong = (_token(subject, name, getattr(asked, name)) for name in ("answer", "wrong"))
    if answer == wrong:
        raise HeadscopeError(
            f"--wrong: {asked.wrong!r} is the answer's own token; name what the other prompt calls for."
        )
    _check_memory(subject, len(clean))
    between = contrast(subject, clean, corrupt, answer=answer, wrong=wrong)
    attributed = attribute(subject, clean, answer, versus=wrong)["heads"]
    if handling.dry_run:
        _describe(subject, between, layers, handling)
        return None

    def examine(_: Subject, layer: Layer) -> dict[str, Any]:
        effect = patch_layer(between, layer.index, where=where)
        return {"case": layer.id, "layer": layer.index, "patching": [float(value) for value in effect]}

    facts = {
        **asdict(asked),
        "model": choice.model,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "case_ids": [layer.id for layer in layers],
    }
    with OpenRun.start(handling.out, "patch", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=len(layers))
            worked = work_through(
                run, layers, subject, choice, examine, title="patching layers", quiet=handling.as_json
            )
            frame = head_frame(worked.records, attributed)
            run.finish(heads=frame, summary=_summary(asked, between, frame), **worked.cost)
    report(run.run, handling)
    return run.run


def head_frame(records: Sequence[Mapping[str, Any]], attributed: xr.DataArray) -> pd.DataFrame:
    """A row per head and metric, as in every run; one pair of prompts has no interval, so low and high are the value.

    attributed: dims (layer, head), in logits. The metric "patching" has the layers of the records only.
    """
    layers = [record["layer"] for record in records]
    tables = {"patching": (layers, np.array([record["patching"] for record in records]))}
    tables["attribution"] = (list(range(attributed.sizes["layer"])), attributed.values)
    rows = [
        {"layer": layer, "head": head, "metric": metric, "value": value, "low": value, "high": value, "n": 1}
        for metric, (names, values) in tables.items()
        for layer, row in zip(names, values.tolist(), strict=True)
        for head, value in enumerate(row)
    ]
    return pd.DataFrame(rows)


def _summary(asked: Asked, between: Contrast, frame: pd.DataFrame) -> dict[str, Any]:
    table = frame.pivot(index=["layer", "head"], columns="metric", values="value").dropna()
    order = table["patching"].abs().sort_values(ascending=False, kind="stable").index[:TOP]
    return {
        "n_cases": frame.loc[frame["metric"] == "patching", "layer"].nunique(),
        "clean": between.clean,
        "corrupt": between.corrupt,
        "unit": "logits",
        "answer": asked.answer,
        "wrong": asked.wrong,
        "where": asked.where,
        "tokens": len(between.corrupt_ids),
        "top": [{"head": str(Head(*at)), **{str(k): float(v) for k, v in table.loc[at].items()}} for at in order],
    }


def _where(text: str) -> Where:
    if text not in get_args(Where):
        raise HeadscopeError(f"--where: {text!r} is neither all (every position is patched) nor last.")
    return cast(Where, text)


def _layers(text: str | None, count: int) -> list[int]:
    """`3`, `0:10` or several joined by commas; all layers for None."""
    found: set[int] = set()
    for term in [f"0:{count}"] if text is None else text.split(","):
        first, colon, end = (part.strip() for part in term.partition(":"))
        if not first.isdigit() or (colon and not end.isdigit()):
            raise HeadscopeError(f"--layers: {text!r} is no list of layers, such as 17 or 0:10 or 3,5.")
        found.update(range(int(first), int(end)) if colon else [int(first)])
    if not found or max(found) >= count:
        raise HeadscopeError(f"--layers: {text!r} does not lie in this model's layers, 0:{count}.")
    return sorted(found)


def _prompt(subject: Subject, name: str, text: str, chat: bool) -> Int[Tensor, " n"]:
    if not text.strip():
        raise HeadscopeError(f"--{name} is empty: give it some text.")
    return (chat_prompt(subject, [Part(text)]) if chat else encode(subject, text, {})).ids


def _token(subject: Subject, name: str, text: str) -> int:
    """The one token that the text is."""
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    pieces = ", ".join(repr(subject.tokenizer.decode([token])) for token in ids)
    raise HeadscopeError(
        f"--{name}: {text!r} is {len(ids)} tokens ({pieces}) and must be one: give the one that tells the two endings "
        "apart, with the space before it."
    )


def _check_memory(subject: Subject, tokens: int) -> None:
    dtype = next(subject.model.parameters()).dtype
    rows = min(BATCH, subject.anatomy.query_heads)
    needed = rows * forward_bytes(subject.anatomy, tokens, dtype=dtype)
    check_fits(needed, subject.device, f"Patching {rows} heads at once in a prompt of {tokens} tokens")


def _describe(subject: Subject, between: Contrast, layers: Sequence[Layer], handling: Handling) -> None:
    heads, tokens = subject.anatomy.query_heads * len(layers), len(between.corrupt_ids)
    if handling.as_json:
        facts = {"cases": len(layers), "heads": heads, "tokens": tokens}
        print(json.dumps({**facts, "clean": between.clean, "corrupt": between.corrupt}))
        return
    console.print(
        f"{heads} heads in {len(layers)} layers of {subject.name} ({subject.dtype}, {subject.device}), prompts of "
        f"{tokens} tokens; the answer leads by {between.clean:.2f} logits in the clean one and {between.corrupt:.2f} "
        "in the corrupt one. Nothing was run."
    )


if __name__ == "__main__":
    from analysis.cli import main

    main(["patch", *sys.argv[1:]])
