"""The attention of chosen layers over one prompt, kept so that any head's map can be zoomed without the model.

    headscope map --tokens 8000 --layers 0,15,29       # or python -m analysis.maps.map_run --tokens 8000

One forward under a Tap. analysis.maps.tiles and analysis.maps.exact read what is kept.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analysis.display import Handling, report
from analysis.maps.kept_layers import ARRAYS
from analysis.maps.map_prompts import Text, prompt_of
from analysis.maps.map_reader import MapReader, RuleChecker, parked, per_head
from analysis.maps.map_sizes import layers_of, map_fits
from analysis.maps.map_summary import head_frame, ranges, summarise
from analysis.maps.overview import POOLINGS, keep_overviews
from analysis.runs import OpenRun, Run, rounded
from analysis.study import ModelChoice, work_through
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Reader, Tap


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    model: str
    text: Text
    layers: str
    device: str | None
    dtype: str | None
    seed: int


@dataclass(frozen=True)
class MapCase:
    """The one case of a map run."""

    prompt: Prompt
    id: str = "prompt"


def keep_map(asked: Asked, handling: Handling) -> Run | None:
    """Read the prompt and keep its maps; returns the finished run, or None for a dry run."""
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and a map is drawn over its tokens.")
    layers = layers_of(asked.layers, subject.anatomy)
    prompt = prompt_of(subject, asked.text)
    if not map_fits(subject, len(prompt), layers, handling):
        return None
    read_through(subject, prompt.ids[:2], RuleChecker())  # refused now, not with a run begun
    text = asked.text
    facts = {"model": asked.model, "prompt": text.prompt, "file": str(text.file) if text.file else None,
             "chat": text.chat, "tokens": text.tokens, "layers": layers, "seed": asked.seed,
             "device": subject.device.type, "dtype": subject.dtype, "sha256": subject.sha256,
             "texts": hashlib.sha256(json.dumps(prompt.ids.tolist()).encode()).hexdigest()}  # fmt: skip
    with OpenRun.start(handling.out, "map", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=1)
            worked = work_through(
                run, [MapCase(prompt)], subject, choice, partial(examine, layers=layers, run=run.run),
                title="keeping maps", quiet=handling.as_json,
            )  # fmt: skip
            run.finish(heads=head_frame(worked.records[0]), summary=summarise(worked.records[0]), **worked.cost)
    report(run.run, handling)
    return run.run


def examine(subject: Subject, case: MapCase, *, layers: Sequence[int], run: Run) -> dict[str, Any]:
    """One forward: the layers' files and the overviews are written, the record is what they belong to."""
    prompt, folder = case.prompt, run.path / ARRAYS
    reader = MapReader(layers, folder)
    read_through(subject, prompt.ids, reader)
    levels = {pooling: np.stack(reader.overviews[pooling]) for pooling in POOLINGS}
    keep_overviews(folder / "overview.safetensors", levels, list(layers), len(prompt))
    found = reader.found()
    sinks, metrics = per_head(found)
    share = parked(found).values
    texts = [prompt.token_text(i) for i in range(len(prompt))]
    return {
        "case": case.id,
        "tokens": len(prompt),
        "ids": prompt.ids.tolist(),
        "texts": texts,
        "spans": {name: ranges(positions) for name, positions in prompt.spans.items()},
        "layers": list(layers),
        "kept_as": reader.dtype,
        "sinks": [
            {"position": key, "token": texts[key], "heads": rounded(float(share[key]))}
            for key in np.flatnonzero(sinks.values).tolist()
        ],
        "per_head": {
            name: rounded(values.transpose("layer", "head").values.astype(float).tolist())
            for name, values in metrics.items()
        },
    }


@torch.inference_mode()
def read_through(subject: Subject, ids: Int[Tensor, " n"], reader: Reader) -> None:
    """One forward under a Tap."""
    with Tap(subject, readers=[reader]):
        subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))


if __name__ == "__main__":
    from analysis.cli import main

    main(["map", *sys.argv[1:]])
