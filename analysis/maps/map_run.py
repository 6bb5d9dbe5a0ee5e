"""The attention of chosen layers over one prompt, kept so that any head's map can be zoomed without the model.

    headscope map --tokens 8000 --layers 0,15,29       # or python -m analysis.maps.map_run --tokens 8000
    headscope map --model emoji-llava --image cat.png

One forward under a Tap, over the model's own answer too where one is asked for. analysis.maps.tiles and
analysis.maps.exact read what is kept.
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

from analysis.display import Handling, report
from analysis.maps.keeping_pictures import keep_picture, picture_record
from analysis.maps.kept_layers import ARRAYS
from analysis.maps.map_pictures import NEW_TOKENS, ShownPicture, chosen_picture, picture_prompt
from analysis.maps.map_prompts import Text, prompt_of
from analysis.maps.map_reader import MapReader, RuleChecker, parked, per_head
from analysis.maps.map_sizes import layers_of, map_fits
from analysis.maps.map_summary import head_frame, ranges, summarise
from analysis.maps.overview import POOLINGS, keep_overviews
from analysis.maps.token_texts import token_texts
from analysis.runs import OpenRun, Run, rounded
from analysis.study import ModelChoice, work_through
from analysis.vision.pictures import Picture
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.generation import check_length, generate, last_logits
from probes.image_prompt import ImagePrompt, continued
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Reader, Tap


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    model: str
    text: Text
    picture: ShownPicture
    new_tokens: int | None
    layers: str
    device: str | None
    dtype: str | None
    seed: int


@dataclass(frozen=True)
class MapCase:
    """The one case of a map run. new_tokens: of the model's answer, which is read as well."""

    prompt: Prompt
    picture: Picture | None = None
    new_tokens: int = 0
    id: str = "prompt"


def keep_map(asked: Asked, handling: Handling) -> Run | None:
    """Read the prompt and keep its maps; returns the finished run, or None for a dry run."""
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, and a map is drawn over its tokens.")
    layers = layers_of(asked.layers, subject.anatomy)
    case = _case(subject, asked)
    if not map_fits(subject, len(case.prompt) + case.new_tokens, layers, handling):
        return None
    read_through(subject, case.prompt, RuleChecker(), first=2)  # refused now, not with a run begun
    text, picture = asked.text, asked.picture
    facts = {"model": asked.model, "prompt": text.prompt, "file": str(text.file) if text.file else None,
             "chat": text.chat, "tokens": text.tokens, "layers": layers, "seed": asked.seed,
             "image": str(picture.image) if picture.image else None, "scene": picture.scene,
             "new_tokens": case.new_tokens, "device": subject.device.type, "dtype": subject.dtype,
             "sha256": subject.sha256, "texts": _digest(case)}  # fmt: skip
    with OpenRun.start(handling.out, "map", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=1)
            worked = work_through(
                run, [case], subject, choice, partial(examine, layers=layers, run=run.run),
                title="keeping maps", quiet=handling.as_json,
            )  # fmt: skip
            run.finish(heads=head_frame(worked.records[0]), summary=summarise(worked.records[0]), **worked.cost)
    report(run.run, handling)
    return run.run


def examine(subject: Subject, case: MapCase, *, layers: Sequence[int], run: Run) -> dict[str, Any]:
    """One forward: the layers' files and the overviews are written, the record is what they belong to."""
    prompt, folder = answered(subject, case), run.path / ARRAYS
    image = prompt if isinstance(prompt, ImagePrompt) else None
    reader = MapReader(layers, folder, behind=image.spans["image"][-1] + 1 if image else None)
    read_through(subject, prompt, reader)
    levels = {pooling: np.stack(reader.overviews[pooling]) for pooling in POOLINGS}
    keep_overviews(folder / "overview.safetensors", levels, list(layers), len(prompt))
    found = reader.found()
    sinks, metrics = per_head(found, image.spans["image"] if image else ())
    share = parked(found).values
    texts = token_texts(subject, prompt)
    record = {
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
    if image is not None and case.picture is not None:
        keep_picture(folder, case.picture, image)
        record["picture"] = picture_record(case.picture, image, found["received:behind"])
    return record


def answered(subject: Subject, case: MapCase) -> Prompt:
    """The prompt with what the model writes behind it, greedily, as span "generated"."""
    if not case.new_tokens:
        return case.prompt
    [said] = generate(subject, [case.prompt], new_tokens=case.new_tokens)
    ends = subject.anatomy.image_token
    # Read again, an image token that the model wrote itself would ask for a second picture.
    return continued(case.prompt, said[: said.index(ends)] if ends in said else said)


@torch.inference_mode()
def read_through(subject: Subject, prompt: Prompt, reader: Reader, *, first: int | None = None) -> None:
    """One forward under a Tap; of the first tokens alone, which see no picture, where `first` says how many."""
    with Tap(subject, readers=[reader]):
        if isinstance(prompt, ImagePrompt) and first is None:
            forward(subject, collate(subject, [prompt]), **last_logits(subject))
        else:
            ids = prompt.ids[None, :first].to(subject.device)
            subject.model(input_ids=ids, use_cache=False, **last_logits(subject))


def _case(subject: Subject, asked: Asked) -> MapCase:
    """Raises HeadscopeError for a prompt that can't be read, and one that goes beyond the window with its answer."""
    picture = chosen_picture(subject, asked.picture, asked.text)
    prompt = prompt_of(subject, asked.text) if picture is None else picture_prompt(subject, picture, asked.text)
    new_tokens = (NEW_TOKENS if picture else 0) if asked.new_tokens is None else asked.new_tokens
    check_length(subject, len(prompt), new_tokens)
    return MapCase(prompt, picture, new_tokens)


def _digest(case: MapCase) -> str:
    """Of the tokens, and of the picture, so that no run goes on with others."""
    found = hashlib.sha256(json.dumps(case.prompt.ids.tolist()).encode())
    if case.picture is not None:
        image = case.picture.read()
        found.update(repr(image.size).encode() + image.tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    from analysis.cli import main

    main(["map", *sys.argv[1:]])
