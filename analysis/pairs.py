"""Does a gate remove the sink? The trained pairs side by side: one seed, one text, and six rules of attention.

    headscope pairs                              # or python -m analysis.pairs
    headscope pairs --models pair-softmax,pair-headwise-gate,path/to/my/model

Each model reads the same windows of held-out text, beginning as it was trained. Claims that this puts beside each
other: a gate after attention takes away sink and massive activations and lowers the loss (Qiu et al., "Gated Attention
for Large Language Models", NeurIPS 2025); clipped softmax takes away outliers, and with them the loss of 8-bit weights
and activations (Bondarenko et al., "Quantizable Transformers", NeurIPS 2023).
"""

import json
import lzma
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from analysis import massive
from analysis.display import Handling, console, report
from analysis.quantisation import quantisation_loss
from analysis.runs import OpenRun, Run
from analysis.sinks import SINK_THRESHOLD, first_share, unspent
from analysis.study import ModelChoice, work_through
from analysis.uncertainty import CONFIDENCE, estimate
from probes.activation_reader import ActivationReader
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.sink_reader import SinkReader
from probes.sources import pairs as shipped
from probes.subject import Subject
from probes.tap import Tap

LONGEST = 512  # tokens of a window: what the pairs were trained on
CALIBRATION = 16  # windows that fix the ranges of 8-bit activations, as Bondarenko et al.; none of them is judged
MEASURES = ("loss", "int8_loss", "int8_rise", "first_share", "sink_rate", "largest_activation", "kurtosis", "unspent")


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    models: str | None
    windows: int
    device: str | None
    seed: int


@dataclass(frozen=True)
class Candidate:
    """One model of those compared."""

    model: str

    @property
    def id(self) -> str:
        return self.model


def pairs(asked: Asked, handling: Handling) -> Run | None:
    """Measure every model on the same windows; returns the finished run, or None for a dry run."""
    names = [name.strip() for name in asked.models.split(",") if name.strip()] if asked.models else sorted(shipped())
    if not names or len(set(names)) < len(names):
        raise HeadscopeError("--models names no model, or one of them twice.")
    choices = [ModelChoice(name, asked.device, "float32") for name in names]
    subjects = [choice.load() for choice in choices]  # one that can't be loaded is refused before the first is measured
    for subject in subjects:
        held_out(subject, asked.windows)
    if handling.dry_run:
        console.print(f"{asked.windows} windows for each of {', '.join(names)}. Nothing was run.")
        return None
    facts = {**asdict(asked), "models": names, "sha256": [subject.sha256 for subject in subjects]}
    examine = partial(measure, windows=asked.windows, device=asked.device, seed=asked.seed)
    with OpenRun.start(handling.out, "pairs", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model={**subjects[0].describe(), "name": ", ".join(names)}, total_cases=len(names))
            worked = work_through(
                run, [Candidate(name) for name in names], subjects[0], choices[0], examine,
                workers=handling.workers, title="measuring", quiet=handling.as_json,
            )  # fmt: skip
            run.finish(heads=None, summary=summarise(worked.records, seed=asked.seed), **worked.cost)
    report(run.run, handling)
    return run.run


def held_out(subject: Subject, count: int) -> tuple[list[Int[Tensor, " n"]], list[Int[Tensor, " n"]]]:
    """The windows that are judged, and those that fix ranges: evenly spread over the held-out text, none in both.

    Each begins with the model's BOS where its tokenizer has one. Raises HeadscopeError where the text is too short.
    """
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and the windows are made of its tokens.")
    text = lzma.decompress(files("data").joinpath("pairs", "heldout.txt.xz").read_bytes()).decode()
    ids = torch.tensor(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
    first = [] if subject.tokenizer.bos_token_id is None else [subject.tokenizer.bos_token_id]
    size = min(LONGEST, subject.anatomy.context or LONGEST) - len(first)
    starts = np.linspace(0, len(ids) - size, count + CALIBRATION).astype(int)
    if len(ids) < size * (count + CALIBRATION):
        raise HeadscopeError(
            f"--windows: {count} windows, and {CALIBRATION} more that fix ranges, need more than the held-out text's "
            f"{len(ids)} tokens: ask for at most {len(ids) // size - CALIBRATION}."
        )
    every = [torch.cat([torch.tensor(first, dtype=torch.long), ids[start : start + size]]) for start in starts]
    fixing = set(np.linspace(0, len(every) - 1, CALIBRATION).astype(int).tolist())
    return [x for i, x in enumerate(every) if i not in fixing], [x for i, x in enumerate(every) if i in fixing]


def measure(_: Subject, candidate: Candidate, *, windows: int, device: str | None, seed: int) -> dict[str, Any]:
    """One model's measures, a number for each window."""
    subject = ModelChoice(candidate.model, device, "float32").load()
    judged, fixing = held_out(subject, windows)
    looked = [_look(subject, ids) for ids in judged]
    losses = quantisation_loss(subject, judged, fixing, seed=seed)
    each = {name: [row[name] for row in looked] for name in looked[0]}
    each["loss"], each["int8_loss"] = losses.unquantised.tolist(), losses.quantised.tolist()
    each["int8_rise"] = (losses.quantised - losses.unquantised).tolist()
    return {
        "case": candidate.model,
        "rule": getattr(subject.model.config, "rule", "softmax"),
        "parameters": sum(weight.numel() for weight in subject.model.parameters()),
        "tokens": len(judged[0]),
        "each": {name: [float(f"{value:.6g}") for value in each[name]] for name in MEASURES},
    }


@torch.inference_mode()
def _look(subject: Subject, ids: Int[Tensor, " n"]) -> dict[str, float]:
    """One window: the sink on its first token, and the sizes of its activations; means over layers and heads."""
    reader, activations = SinkReader(), ActivationReader()
    with Tap(subject, readers=[reader, activations]):
        subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    found: xr.Dataset = reader.found()
    rows = massive.record(activations, [""] * len(ids))
    return {
        "first_share": float(first_share(found["received_sum"]).mean()),
        "sink_rate": float((found["received"].isel(key=0) > SINK_THRESHOLD).mean()),
        "unspent": float(unspent(found["received_sum"]).mean()),
        "largest_activation": float(np.mean([row["largest"] for row in rows if row["activation"] == massive.WHERE])),
        "kurtosis": float(np.mean([row["kurtosis"] for row in rows])),
    }


def summarise(records: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """Every measure of every model with its interval over windows, and the curves over training of those that ship."""
    models = [
        {
            "model": record["case"],
            "rule": record["rule"],
            "parameters": record["parameters"],
            **{name: estimate(np.array(record["each"][name]), seed=seed) for name in MEASURES},
        }
        for record in records
    ]
    rules = {record["rule"] for record in records if record["case"] in shipped()}
    return {
        "n_cases": len(records),
        "windows": len(records[0]["each"]["loss"]),
        "tokens": records[0]["tokens"],
        "confidence": CONFIDENCE,
        "correction": "intervals are over windows of one text, for each number alone; what another seed would have "
        "given they do not hold: see the curves",
        "models": models,
        "curves": [curve for curve in training_curves() if curve["rule"] in rules],
    }


def training_curves() -> list[dict[str, Any]]:
    """Of every rule and seed: {"rule", "seed", "curve": [{"step", "loss", "first_share", ...}]} over training."""
    found = json.loads(files("data").joinpath("pairs", "curves.json").read_text())
    return [{name: one[name] for name in ("rule", "seed", "curve")} for one in found]


if __name__ == "__main__":
    from analysis.cli import main

    main(["pairs", *sys.argv[1:]])
