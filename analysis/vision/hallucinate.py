"""Does a mitigation make a vision-language model invent less, or just say less?

    headscope hallucinate --mitigations "vhr; var"     # or python -m analysis.vision.hallucinate --mitigations "vhr"

Every arm describes the same pictures (CHAIR, AMBER) and answers the same questions (POPE). What chooses heads stands
beside itself with random heads, as many of them.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.display import Handling, report
from analysis.runs import OpenRun, Run, find_run
from analysis.study import ModelChoice, prompts_fit, work_through
from analysis.vision.answering import TASKS, Task, arms, examine, units
from analysis.vision.cases import (
    DEFAULT_MODEL,
    DEFAULT_SETS,
    QUESTION,
    Choice,
    PictureSet,
    facts_of,
    first_prompt,
    picture_sets,
)
from analysis.vision.hallucination_summary import summarise
from analysis.vision.head_rankings import mean_scores
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.memory import forward_bytes
from probes.subject import Subject

DEFAULT_MITIGATIONS = "none; vhr; var; pai; sink_to_image(0.15); vcd; dola"
FEW = 16  # pictures of each set: every arm describes them, and is asked about each some ten times
STREAMS = 2  # rows of the batch for each prompt, where a mitigation decodes against something


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else. controls: draws of random heads beside each that chooses.

    mitigations: separated by ";" (analysis.vision.mitigations); tasks: captions, pope, or both; heads_from: the vision
    run whose mean VHD ranks the heads for mitigations that take the top few.
    """

    model: str = DEFAULT_MODEL
    mitigations: str = DEFAULT_MITIGATIONS
    controls: int = 1
    tasks: str = ",".join(TASKS)
    pictures: str = DEFAULT_SETS
    part: str = "judge"
    images: Path | None = None
    annotations: Path | None = None
    count: int | None = None
    question: str = QUESTION
    new_tokens: int = 100
    batch: int = 8
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    heads_from: str | None = None


def hallucinate(asked: Asked, handling: Handling) -> Run | None:
    """Describe, ask and judge under every mitigation; returns the finished run, or None for a dry run."""
    tasks = _tasks(asked.tasks)
    sets = picture_sets(Choice(asked.pictures, asked.part, asked.images, asked.annotations, asked.count, FEW))
    source = find_run(asked.heads_from, handling.out, command="vision") if asked.heads_from else None
    scores = _ranking(source, sets) if source else None
    chosen = arms(asked.mitigations, controls=asked.controls, seed=asked.seed, scores=scores)
    choice = ModelChoice(asked.model, asked.device, asked.dtype)
    subject = choice.load()
    first = first_prompt(subject, sets, asked.question)
    check_length(subject, len(first), asked.new_tokens)
    work = units(sets, chosen, tasks, batch=asked.batch, seed=asked.seed)
    answers = sum(len(unit.items) for unit in work)
    longest = len(first) + asked.new_tokens
    if not prompts_fit(subject, answers, longest, _bytes(subject, longest, asked), handling):
        return None
    facts = {**facts_of(asdict(asked), subject, sets), "arms": [arm.name for arm in chosen],
             "heads_from": source.id if source else None}  # fmt: skip
    with OpenRun.start(handling.out, "hallucinate", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=len(work))
            worked = work_through(
                run, work, subject, choice, partial(examine, question=asked.question, new_tokens=asked.new_tokens),
                workers=handling.workers, title="describing and answering", quiet=handling.as_json,
            )  # fmt: skip
            summary: dict[str, Any] = {
                **summarise(worked.records, [each.name for each in sets], chosen, seed=asked.seed),
                "question": asked.question,
                "new_tokens": asked.new_tokens,
                "tasks": tasks,
                "part": asked.part,
            }
            run.finish(heads=None, summary=summary, **worked.cost)
    report(run.run, handling)
    return run.run


def _tasks(text: str) -> list[Task]:
    named = [word.strip() for word in text.split(",") if word.strip()]
    if not named or any(word not in TASKS for word in named):
        raise HeadscopeError(f"--tasks takes {', '.join(TASKS)}, or both with a comma, and not {text!r}.")
    return [task for task in ("captions", "pope") if task in named]


def _ranking(source: Run, sets: Sequence[PictureSet]) -> NDArray[np.float64]:
    """Mean VHD of the heads. Raises HeadscopeError where the very pictures that are to judge ranked them."""
    ranked = {picture for ids in source.manifest["request"]["sets"].values() for picture in ids}
    if both := [picture.id for each in sets for picture in each.pictures if picture.id in ranked]:
        raise HeadscopeError(
            f"Picture {both[0]} also ranked the heads in the run {source.id}: rank them on --part dev, or judge on "
            "other pictures."
        )
    return mean_scores(source)


def _bytes(subject: Subject, longest: int, asked: Asked) -> int:
    precision = next(subject.model.parameters()).dtype
    return STREAMS * asked.batch * forward_bytes(subject.anatomy, longest, dtype=precision)


if __name__ == "__main__":
    from analysis.cli import main

    main(["hallucinate", *sys.argv[1:]])
