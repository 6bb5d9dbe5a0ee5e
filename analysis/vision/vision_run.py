"""What do the heads of a vision-language model look at while it describes a picture, and does it show in what is said?

    headscope vision --pictures themed-hard         # or python -m analysis.vision.vision_run --pictures themed-hard

Each picture is described greedily; every measure is read off that caption, teacher-forced.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from analysis.display import Handling, report
from analysis.runs import OpenRun, Run, find_run
from analysis.study import ModelChoice, prompts_fit, work_through
from analysis.vision.cases import Choice, PictureSet, batches, facts_of, first_prompt, picture_sets, prompts_for
from analysis.vision.head_rankings import compare
from analysis.vision.looking import Looking, captions, examine
from analysis.vision.reading import RATIO
from analysis.vision.vision_summary import metric_frame, summarise
from analysis.vision.visual_sinks import TAU, find_dimensions
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.image_prompt import ImagePrompt, image_prompt
from probes.memory import forward_bytes
from probes.subject import Subject

GREY = 127  # the level of a picture that shows nothing
DIMENSIONS_FROM = 8  # pictures on which the sinks' dimensions are found


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else.

    shown: pictures of each set whose maps are kept. explained: those that rollout and relevancy explain as well.
    """

    model: str
    pictures: str
    part: str
    images: Path | None
    annotations: Path | None
    count: int | None
    question: str
    new_tokens: int
    batch: int
    shown: int
    explained: int
    beside: str | None
    device: str | None
    dtype: str | None
    seed: int


def vision(asked: Asked, handling: Handling) -> Run | None:
    """Describe and read; returns the finished run, or None for a dry run."""
    sets = picture_sets(Choice(asked.pictures, asked.part, asked.images, asked.annotations, asked.count))
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    other = _other(asked, subject, handling.out)
    first = first_prompt(subject, sets, asked.question)
    longest = len(first) + asked.new_tokens
    check_length(subject, len(first), asked.new_tokens)
    units = [
        Looking(each, number, some, *(max(0, few - number * asked.batch) for few in (asked.shown, asked.explained)))
        for each in sets
        for number, some in batches(each.pictures, asked.batch)
    ]
    pictures = sum(len(each.pictures) for each in sets)
    if not prompts_fit(subject, pictures, longest, _bytes(subject, first, asked), handling):
        return None
    facts = {**facts_of(asdict(asked), subject, sets), "beside": other.id if other else None}
    with OpenRun.start(handling.out, "vision", facts, resume=handling.resume) as run:
        if not run.run.finished:
            dimensions, why_not = _dimensions(subject, sets, asked)
            run.note(model=subject.describe(), total_cases=len(units))
            worked = work_through(
                run, units, subject, choice,
                partial(examine, question=asked.question, new_tokens=asked.new_tokens, dimensions=dimensions,
                        arrays=run.run.path / "arrays"),
                workers=handling.workers, title="looking", quiet=handling.as_json,
            )  # fmt: skip
            rows = [row for record in worked.records for row in record["rows"]]
            frame = metric_frame(rows, seed=asked.seed)
            summary = {
                **summarise(worked.records, frame, sets, ratio=RATIO, seed=asked.seed),
                "question": asked.question,
                "new_tokens": asked.new_tokens,
                "sink_dimensions": {"found": list(dimensions), "why_not": why_not},
                "blank": _blank(subject, sets, asked),
                "beside": _beside(rows, other, seed=asked.seed) if other else None,
            }
            run.finish(heads=frame, summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


def _other(asked: Asked, subject: Subject, folder: Path) -> Run | None:
    """The earlier run to compare with. Raises HeadscopeError for one of another verb, or of another size of model."""
    if asked.beside is None:
        return None
    run = find_run(asked.beside, folder, command="vision")
    if run.manifest["command"] != "vision" or not run.finished:
        raise HeadscopeError(f"{run.id} is no finished run of headscope vision: --with takes one.")
    theirs = run.manifest["model"]
    ours = subject.describe()
    if any(theirs[name] != ours[name] for name in ("layers", "heads")):
        raise HeadscopeError(
            f"{run.id} looked at {theirs['layers']} layers of {theirs['heads']} heads, and {subject.name} has "
            f"{ours['layers']} of {ours['heads']}: only models of the same size are compared head by head."
        )
    return run


def _beside(rows: Sequence[Any], other: Run, *, seed: int) -> dict[str, Any]:
    theirs = [row for record in other.cases() for row in record["rows"]]
    return compare(rows, theirs, run=other.id, model=other.manifest["model"]["name"], seed=seed)


def _dimensions(subject: Subject, sets: Sequence[PictureSet], asked: Asked) -> tuple[tuple[int, ...], str | None]:
    """Coordinates of the stream by which sinks are known, or why there are none."""
    pictures = sets[0].pictures[:DIMENSIONS_FROM]
    prompts = prompts_for(subject, pictures, [asked.question] * len(pictures))
    try:
        found = find_dimensions(subject, prompts)
    except HeadscopeError as error:
        return (), str(error)
    return found, None if found else f"no coordinate of the first token exceeds {TAU:g} times its root mean square"


def _blank(subject: Subject, sets: Sequence[PictureSet], asked: Asked) -> dict[str, Any]:
    """What the model says of a picture that shows nothing: every object that it names is invented."""
    grey = Image.new("RGB", sets[0].pictures[0].read().size, (GREY, GREY, GREY))
    prompt = image_prompt(subject, grey, asked.question)
    caption = captions(subject, [prompt], sets[0], new_tokens=asked.new_tokens)[0]
    return {"caption": caption.text, "objects": [one.name for one in caption.mentions]}


def _bytes(subject: Subject, prompt: ImagePrompt, asked: Asked) -> int:
    """What a batch takes beside the weights: its forward, and the maps and head outputs of its captions, twice."""
    anatomy = subject.anatomy
    precision = next(subject.model.parameters()).dtype
    heads = anatomy.layers * anatomy.query_heads
    kept = 4 * heads * asked.new_tokens * (len(prompt.spans["image"]) + 2 * anatomy.decoder[0].head_size)
    return asked.batch * (forward_bytes(anatomy, len(prompt) + asked.new_tokens, dtype=precision) + 2 * kept)


if __name__ == "__main__":
    from analysis.cli import main

    main(["vision", *sys.argv[1:]])
