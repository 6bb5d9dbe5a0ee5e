"""Sets of pictures to judge a model on: emoji-scenes, or a user's folder with COCO's annotations.

    picture_sets(Choice(pictures="themed-hard,counter-hard", count=100))
    picture_sets(Choice(images=Path("val2014"), annotations=Path("instances.json")))

A run works through them batch by batch.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from analysis.vision import drawing, scenes
from analysis.vision.coco import read_folder, read_vocabulary
from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture, Seen
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, image_prompt
from probes.subject import Subject

DEFAULT_MODEL = "emoji-llava"
DEFAULT_SETS = "themed-hard,counter-hard"
DEFAULT_COUNT = 40
Item = TypeVar("Item")
QUESTION = "Describe the image in detail."
LISTED_SCENES = 1000  # scenes, of those that choose, in which objects are counted that keep company


@dataclass(frozen=True)
class Choice:
    """What a user asked for. images and annotations go together, and instead of the sets.

    count: pictures of each set, `few` where it is None; then a folder is taken whole.
    """

    pictures: str = DEFAULT_SETS
    part: str = "judge"
    images: Path | None = None
    annotations: Path | None = None
    count: int | None = None
    few: int = DEFAULT_COUNT


@dataclass(frozen=True)
class PictureSet:
    """vocabulary: every object that a text can name. themes: phrase that names a theme -> the objects it expects.

    reference: pictures in which POPE counts what is frequent and what keeps company; these ones where there are none.
    article: whether questions write "an" where it belongs, as the model has read them.
    """

    name: str
    pictures: tuple[Picture, ...]
    vocabulary: Vocabulary = field(repr=False)
    themes: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    reference: tuple[Picture, ...] | None = field(default=None, repr=False)
    article: bool = False


def picture_sets(choice: Choice) -> list[PictureSet]:
    """Raises HeadscopeError for a set there is not, images without annotations, and images that can't be read."""
    if choice.count is not None and choice.count < 2:
        raise HeadscopeError(f"--count takes at least 2 pictures, and not {choice.count}: intervals are over pictures.")
    if (choice.images is None) != (choice.annotations is None):
        raise HeadscopeError("--images and --annotations go together: what is in the images must be known.")
    if choice.images is not None and choice.annotations is not None:
        return [_own(choice.images, choice.annotations, choice.count)]
    names = list(dict.fromkeys(name.strip() for name in choice.pictures.split(",") if name.strip()))
    if not names:
        raise HeadscopeError(f"--pictures is empty: choose among {', '.join(scenes.SETS)}.")
    return [_emoji(name, choice.part, choice.count or choice.few) for name in names]


def first_prompt(subject: Subject, sets: Sequence[PictureSet], question: str) -> ImagePrompt:
    """The prompt of the first picture: a model or a question that can't make one is refused before the work starts."""
    return image_prompt(subject, sets[0].pictures[0].read(), question)


def batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, tuple[Item, ...]]]:
    """The items in pieces of at most `size`, numbered."""
    rest, number = iter(items), 0
    while some := tuple(islice(rest, size)):
        yield number, some
        number += 1


def digest(sets: Sequence[PictureSet], *, pixels: bool) -> str:
    """One hash of what is in the pictures, and of their pixels, so that no run goes on with others."""
    found = hashlib.sha256()
    for each in sets:
        for picture in each.pictures:
            found.update(repr((each.name, picture.id, picture.objects, picture.likely)).encode())
            if pixels:
                image = picture.read()
                found.update(repr(image.size).encode() + image.tobytes())
    return found.hexdigest()


def facts_of(asked: Mapping[str, Any], subject: Subject, sets: Sequence[PictureSet]) -> dict[str, Any]:
    """What a request says: all that changes its results. Images from files are read once, and refused here."""
    own = asked["images"] is not None
    paths = {name: str(asked[name]) if asked[name] is not None else None for name in ("images", "annotations")}
    return {
        **asked, **paths, "device": subject.device.type, "dtype": subject.dtype, "sha256": subject.sha256,
        "sets": {each.name: [picture.id for picture in each.pictures] for each in sets},
        "pictures_digest": digest(sets, pixels=own),
    }  # fmt: skip


def prompts_for(subject: Subject, pictures: Sequence[Picture], questions: Sequence[str]) -> list[ImagePrompt]:
    """A prompt for each picture and question; a picture that is asked about several times is read once."""
    read: dict[str, Any] = {}
    found = []
    for picture, question in zip(pictures, questions, strict=True):
        if picture.id not in read:
            read[picture.id] = picture.read()
        found.append(image_prompt(subject, read[picture.id], question))
    return found


def _own(images: Path, annotations: Path, count: int | None) -> PictureSet:
    pictures = tuple(read_folder(images, annotations)[:count])
    return PictureSet(images.resolve().name or "images", pictures, read_vocabulary(annotations))


def _emoji(name: str, part: str, count: int) -> PictureSet:
    pictures = drawing.pictures(scenes.scenes(name, count=count, part=part))
    themes = {theme.phrase: frozenset(theme.objects) for theme in scenes.world().themes.values()}
    return PictureSet(name, tuple(pictures), scenes.vocabulary(), themes, _company(), article=True)


@cache
def _company() -> tuple[Picture, ...]:
    """Themed scenes, as in training, of which only the objects matter: nothing is drawn."""
    made = scenes.scenes("themed-clear", count=LISTED_SCENES, part="dev")
    whole = (0.0, 0.0, 1.0, 1.0)
    return tuple(Picture(one.id, tuple(Seen(name, whole) for name in one.names), one.theme, (), _never) for one in made)


def _never() -> Any:
    raise HeadscopeError("A scene of the reference is only counted, and never drawn.")
