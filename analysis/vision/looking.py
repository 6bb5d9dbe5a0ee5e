"""One batch of pictures: what the model says of each, and where every head looked while it said so.

Captions are greedy. Everything else is read off them teacher-forced, so that one caption serves all measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs import rounded
from analysis.vision.cases import PictureSet, prompts_for
from analysis.vision.detection import first_rows
from analysis.vision.divergence import token_divergence
from analysis.vision.explaining import explained
from analysis.vision.kept_pictures import file_name, keep
from analysis.vision.objects import Mention
from analysis.vision.pictures import Picture
from analysis.vision.reading import Seen, numbers, read_batch
from probes.generation import generate
from probes.image_prompt import ImagePrompt
from probes.subject import Subject

DIGITS = 5  # of every number in a record


@dataclass(frozen=True)
class Looking:
    """One piece of a run's work. shown: its first pictures whose maps are kept. explained: those explained as well."""

    set: PictureSet
    number: int
    pictures: tuple[Picture, ...]
    shown: int = 0
    explained: int = 0

    @property
    def id(self) -> str:
        return f"{self.set.name}-{self.number}"


@dataclass(frozen=True)
class Written:
    """A caption: its tokens, its text, the objects that the text names and the step that began each."""

    ids: list[int]
    text: str
    mentions: list[Mention]
    steps: list[int]


def examine(
    subject: Subject, case: Looking, *, question: str, new_tokens: int, dimensions: Sequence[int], arrays: Path
) -> dict[str, Any]:
    """The record of one batch: a row for each picture. A picture of which the model says nothing has no numbers."""
    prompts = prompts_for(subject, case.pictures, [question] * len(case.pictures))
    written = captions(subject, prompts, case.set, new_tokens=new_tokens)
    rows = [described(subject, *each) for each in zip(case.pictures, written, strict=True)]
    spoken = [i for i, caption in enumerate(written) if caption.ids]
    if spoken:
        some, said = [prompts[i] for i in spoken], [written[i] for i in spoken]
        seen = read_batch(subject, some, [caption.ids for caption in said], dimensions)
        for at, i in enumerate(spoken):
            rows[i] |= numbers(seen, at, case.pictures[i], some[at], said)
            if i < case.explained:
                rows[i]["explained"] = explained(subject, some[at], said[at], case.pictures[i])
            if i < case.shown:
                rows[i]["arrays"] = _keep(arrays, case, i, seen, at, some[at])
    found: dict[str, Any] = rounded({"case": case.id, "set": case.set.name, "rows": rows}, DIGITS)
    return found


def captions(subject: Subject, prompts: Sequence[ImagePrompt], among: PictureSet, *, new_tokens: int) -> list[Written]:
    """What the model says of each picture, greedily, and the objects among what can be named.

    A caption ends before an image token that the model writes: read again, it would ask for a second picture.
    """
    said = generate(subject, prompts, new_tokens=new_tokens)
    ends = subject.anatomy.image_token
    return [understood(subject, ids[: ids.index(ends)] if ends in ids else ids, among) for ids in said]


def understood(subject: Subject, ids: Sequence[int], among: PictureSet) -> Written:
    """A caption's text, with the mentions of objects in it."""
    text = str(subject.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    mentions = among.vocabulary.mentions(text)
    return Written(list(ids), text, mentions, first_rows(subject, ids, mentions))


def described(subject: Subject, picture: Picture, caption: Written) -> dict[str, Any]:
    """A picture and what was said of it, as records hold them."""
    return {
        "picture": picture.id,
        "theme": picture.theme,
        "likely": list(picture.likely),
        "caption": caption.text,
        "tokens": [subject.tokenizer.decode([token]) for token in caption.ids],
        "objects": [{"name": seen.name, "box": list(seen.box)} for seen in picture.objects],
        "mentions": [
            {"name": one.name, "start": one.start, "stop": one.stop, "step": step,
             "invented": one.name not in picture.names}
            for one, step in zip(caption.mentions, caption.steps, strict=True)
        ],
    }  # fmt: skip


def _keep(folder: Path, case: Looking, i: int, seen: Seen, at: int, prompt: ImagePrompt) -> str:
    """Writes what the dashboard draws of a picture; returns the file's name."""
    picture = case.pictures[i]
    name = file_name(picture.id, f"{case.id}-{i}")
    surprise = token_divergence(seen.of(at)["divergence"]).values
    keep(folder / name, picture.read(), seen.maps[at].values, prompt.patches.numpy(), surprise)
    return name
