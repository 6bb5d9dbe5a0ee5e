"""One batch under one mitigation: captions of pictures, or answers of yes and no."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.runs import rounded
from analysis.vision import pope
from analysis.vision.cases import PictureSet, batches, prompts_for
from analysis.vision.inventions import caption_counts
from analysis.vision.looking import DIGITS, described, understood
from analysis.vision.mitigations import caption, mitigation, yes_shares
from analysis.vision.pictures import Picture
from analysis.vision.preset import Mitigation
from analysis.vision.yes_or_no import answer_tokens
from probes.errors import HeadscopeError
from probes.subject import Subject

NONE = "none"
TASKS = ("captions", "pope")
ANSWER_TOKENS = 8  # of a spoken answer, for models whose tokenizer has no single token for yes and no

Task = Literal["captions", "pope"]


@dataclass(frozen=True)
class Arm:
    """A mitigation under its name, and the one that it is the control of, with heads at random."""

    name: str
    mitigation: Mitigation
    seed: int
    control_of: str | None = None


@dataclass(frozen=True)
class Question:
    """One question of POPE, in all the splits that ask it."""

    picture: Picture
    object: str
    present: bool
    splits: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Judging:
    """One piece of a run's work: pictures to describe, or questions to answer."""

    set: PictureSet
    arm: Arm
    task: Task
    number: int
    items: tuple[Any, ...]

    @property
    def id(self) -> str:
        return f"{self.set.name}/{self.arm.name}/{self.task}/{self.number}"

    @property
    def seed(self) -> int:
        """Its own, so that heads drawn at random differ from batch to batch."""
        return int(np.random.SeedSequence([self.arm.seed, self.number]).generate_state(1)[0] >> 1)


def arms(text: str, *, controls: int, seed: int, scores: ArrayLike | None = None) -> list[Arm]:
    """The mitigations of a text, separated by ";", "none" first; controls follow what they are the controls of.

    scores: (layer, head), by which some choose. Raises HeadscopeError for a mitigation that can't be read.
    """
    named = [NONE, *(part.strip() for part in text.split(";") if part.strip())]
    found: dict[str, Arm] = {}
    for each in (mitigation(part, scores=scores) for part in named):
        if each.name in found:
            continue
        found[each.name] = Arm(each.name, each, seed)
        for i in range(controls if each.control is not None else 0):
            name = f"{each.name}, random heads {i + 1}"
            assert each.control is not None
            found[name] = Arm(name, each.control, seed + 1 + i, each.name)
    return list(found.values())


def units(sets: Sequence[PictureSet], chosen: Sequence[Arm], tasks: Sequence[Task], *, batch: int, seed: int
) -> list[Judging]:  # fmt: skip
    """All that is to be done, set by set and arm by arm, so that a run that was stopped has whole arms."""
    found = []
    for each in sets:
        asked = ask(each, seed=seed) if "pope" in tasks else []
        for arm in chosen:
            for task in tasks:
                items: Sequence[Any] = each.pictures if task == "captions" else asked
                found += [Judging(each, arm, task, number, some) for number, some in batches(items, batch)]
    return found


def ask(among: PictureSet, *, seed: int) -> list[Question]:
    """POPE's questions of all three splits, each asked once, picture by picture."""
    pictures = {picture.id: picture for picture in among.pictures}
    splits: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], pope.Question] = {}
    for split in pope.SPLITS:
        for one in pope.questions(
            among.pictures, among.vocabulary, split, seed=seed, reference=among.reference, article=among.article
        ):
            key = one.picture_id, one.object
            splits.setdefault(key, []).append(split)
            first.setdefault(key, one)
    order = {picture: i for i, picture in enumerate(pictures)}
    return [
        Question(pictures[one.picture_id], one.object, one.present, tuple(splits[key]), one.text)
        for key, one in sorted(first.items(), key=lambda item: order[item[0][0]])
    ]


def examine(subject: Subject, case: Judging, *, question: str, new_tokens: int) -> dict[str, Any]:
    """The record of one batch: a row for each picture or question."""
    rows = _captions(subject, case, question, new_tokens) if case.task == "captions" else _answers(subject, case)
    record = {"case": case.id, "set": case.set.name, "arm": case.arm.name, "task": case.task, "rows": rows}
    found: dict[str, Any] = rounded(record, DIGITS)
    return found


def _captions(subject: Subject, case: Judging, question: str, new_tokens: int) -> list[dict[str, Any]]:
    prompts = prompts_for(subject, case.items, [question] * len(case.items))
    said = caption(subject, prompts, case.arm.mitigation, new_tokens=new_tokens, seed=case.seed)
    rows = []
    for picture, ids in zip(case.items, said, strict=True):
        row = described(subject, picture, understood(subject, ids, case.set))
        rows.append({**row, "counts": asdict(caption_counts(row))})
    return rows


def _answers(subject: Subject, case: Judging) -> list[dict[str, Any]]:
    asked: Sequence[Question] = case.items
    prompts = prompts_for(subject, [one.picture for one in asked], [one.text for one in asked])
    arm = case.arm.mitigation
    shares: list[float | None]
    if _has_words(subject):
        shares = [float(share) for share in yes_shares(subject, prompts, arm, seed=case.seed)]
        said = [share is not None and share > 0.5 for share in shares]
    else:
        texts = caption(subject, prompts, arm, new_tokens=ANSWER_TOKENS, seed=case.seed)
        said = [pope.parse(str(subject.tokenizer.decode(ids, skip_special_tokens=True))) for ids in texts]
        shares = [None] * len(said)
    return [
        {"picture": one.picture.id, "object": one.object, "present": one.present, "splits": list(one.splits),
         "yes": yes, "share": share}
        for one, yes, share in zip(asked, said, shares, strict=True)
    ]  # fmt: skip


def _has_words(subject: Subject) -> bool:
    try:
        answer_tokens(subject.tokenizer)
    except HeadscopeError:
        return False
    return True
