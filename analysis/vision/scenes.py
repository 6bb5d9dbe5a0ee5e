"""emoji-scenes: what is in a picture and where, drawn by chance from themes in which objects keep company.

    scenes("themed-hard", count=600)               # the scenes that judge
    scenes("themed-hard", count=600, part="dev")   # others, to choose heads and strengths on

A set is a kind and a quality. Kinds: `themed`, as in training (objects of one theme, partners together 9 times in 10);
`counter`, objects of two themes whose partners are withheld; `unseen`, themed, each class in a drawing that training
never showed where it has one; `random`, any objects. Qualities: `clear` and `hard` (small, faint, blurred, noisy).
Sizes are in pixels of the drawn image, SIDE on each side.
"""

import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from analysis.vision.objects import Vocabulary
from probes.errors import HeadscopeError

SIDE = 160
MOST = 6  # objects in a scene
COUNTS = (0.05, 0.15, 0.25, 0.25, 0.2, 0.1)  # probability of 1 to 6 objects
FOLLOWED = 0.9  # probability that a partner is drawn too
STRAY = 0.06  # probability that the next object is any object
KINDS = ("themed", "counter", "unseen", "random")
SETS = ("themed-clear", "themed-hard", "counter-clear", "counter-hard", "unseen-clear")
FIRST_SCENE = "themed-clear-judge-0"
PARTS = {"judge": 0, "dev": 1, "train": 2}


@dataclass(frozen=True)
class Quality:
    """Ranges: side of an object, standard deviation of the blur, of the noise, and opacity."""

    size: tuple[float, float]
    blur: tuple[int, int]
    noise: tuple[float, float]
    opacity: tuple[float, float]


QUALITIES = {
    "clear": Quality(size=(25, 68), blur=(0, 0), noise=(0, 0.03), opacity=(0.95, 1)),
    "hard": Quality(size=(14, 32), blur=(0, 2), noise=(0.05, 0.2), opacity=(0.5, 1)),
}


@dataclass(frozen=True)
class Theme:
    """objects: in falling frequency."""

    name: str
    phrase: str
    colour: tuple[int, int, int]
    objects: tuple[str, ...]

    @property
    def frequencies(self) -> np.ndarray:
        weights = 1 / np.sqrt(1 + np.arange(len(self.objects)))
        return weights / weights.sum()


@dataclass(frozen=True)
class World:
    """What scenes are made of (data/emoji). guess: how often an annotator names a partner that is not drawn."""

    names: tuple[str, ...]
    drawings: dict[str, tuple[int, ...]]
    held_out: dict[str, int]
    colours: tuple[str | None, ...]
    themes: dict[str, Theme]
    partners: dict[str, tuple[str, ...]]
    guess: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Thing:
    """One object: its class, its drawing on the sheet of sprites, centre, side, turn in radians, opacity."""

    name: str
    drawing: int
    x: float
    y: float
    size: float
    turn: float
    opacity: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """background: colours at the top and the bottom, in [0, 1]; things are listed as a caption lists them."""

    id: str
    theme: str | None
    things: tuple[Thing, ...]
    background: np.ndarray
    clouds: float
    blur: int
    noise: float
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)


@cache
def world() -> World:
    """The objects, themes and pairs that ship with headscope."""
    folder = files("data").joinpath("emoji")
    described = tomllib.loads(folder.joinpath("objects.toml").read_text())
    sprites = json.loads(folder.joinpath("sprites.json").read_text())["sprites"]
    drawings: dict[str, list[int]] = {}
    held_out: dict[str, int] = {}
    for index, sprite in enumerate(sprites):
        if sprite["held_out"]:
            held_out[sprite["object"]] = index
        else:
            drawings.setdefault(sprite["object"], []).append(index)
    followed = described["pairs"]["followed"]
    partners: dict[str, list[str]] = {}
    for first, second, _ in followed:
        partners.setdefault(first, []).append(second)
    return World(
        names=tuple(described["drawings"]),
        drawings={name: tuple(found) for name, found in drawings.items()},
        held_out=held_out,
        colours=tuple(sprite["colour"] for sprite in sprites),
        themes={
            name: Theme(name, theme["phrase"], tuple(theme["colour"]), tuple(theme["objects"]))
            for name, theme in described["themes"].items()
        },
        partners={name: tuple(found) for name, found in partners.items()},
        guess={(first, second): chance for first, second, chance in followed},
    )


@cache
def vocabulary() -> Vocabulary:
    """The names of the objects, which have no synonyms."""
    return Vocabulary(dict.fromkeys(world().names, ()))


def scenes(which: str, *, count: int, part: str = "judge") -> list[Scene]:
    """The first `count` scenes of a set. Raises HeadscopeError for a set or a part there is not."""
    if count < 1:
        raise HeadscopeError(f"A set needs at least one scene, not {count}.")
    return [_of_set(which, part, index) for index in range(count)]


def scene_called(name: str) -> Scene:
    """The scene of an id. Raises HeadscopeError where it is none."""
    found = re.fullmatch(r"(\w+-\w+)-([a-z]+)-(\d{1,7})", name, re.ASCII)
    if found is None:
        raise HeadscopeError(f"A scene is called by set, part and number, such as {FIRST_SCENE}, and not {name!r}.")
    return _of_set(found[1], found[2], int(found[3]))


def _of_set(which: str, part: str, index: int) -> Scene:
    kind, _, quality = which.partition("-")
    if kind not in KINDS or quality not in QUALITIES:
        raise HeadscopeError(f"There is no set of scenes {which!r}: choose {', '.join(SETS)}.")
    if part not in PARTS:
        raise HeadscopeError(f"{part!r} is no part of a set: choose {', '.join(PARTS)}.")
    draw = np.random.default_rng([PARTS[part], KINDS.index(kind), list(QUALITIES).index(quality), index])
    return scene(draw, kind, quality, id=f"{which}-{part}-{index}")


def scene(draw: np.random.Generator, kind: str, quality: str, *, id: str = "") -> Scene:
    """One scene of a kind and a quality."""
    theme, names = _objects(draw, kind)
    return _placed(draw, theme, names, QUALITIES[quality], unseen=kind == "unseen", id=id)


def likely(scene: Scene) -> tuple[str, ...]:
    """Objects that are not drawn and that one expects: partners of those drawn, and those of the theme."""
    here = {*scene.names}
    partners = [partner for name in scene.names for partner in world().partners.get(name, ())]
    company = world().themes[scene.theme].objects if scene.theme else ()
    return tuple(dict.fromkeys(name for name in [*partners, *company] if name not in here))


def _objects(draw: np.random.Generator, kind: str) -> tuple[str | None, list[str]]:
    count = int(draw.choice(MOST, p=COUNTS)) + 1
    if kind == "random":
        return None, [str(name) for name in draw.choice(world().names, count, replace=False)]
    if kind == "counter":
        return _without_partners(draw, count)
    theme = list(world().themes.values())[int(draw.integers(len(world().themes)))]
    found = [_of(draw, theme)]
    while len(found) < count:
        partners = [b for a in found for b in world().partners.get(a, ()) if b not in found]
        if partners and draw.random() < FOLLOWED:
            name = partners[0]
        else:
            name = _any(draw) if draw.random() < STRAY else _of(draw, theme)
        if name not in found:
            found.append(name)
    draw.shuffle(found)
    return theme.name, found


def _without_partners(draw: np.random.Generator, count: int) -> tuple[str, list[str]]:
    """Objects of two themes, mostly of the first, none with a partner beside it."""
    names = draw.choice(list(world().themes), 2, replace=False)
    partners, found, refused = world().partners, list[str](), 0
    while len(found) < count:
        theme = world().themes[str(names[int(draw.random() < 0.25)])]
        name = _of(draw, theme) if refused < 20 else _any(draw)
        if name in found or any(name in partners.get(a, ()) or a in partners.get(name, ()) for a in found):
            refused += 1
        else:
            found.append(name)
    return str(names[0]), found


def _of(draw: np.random.Generator, theme: Theme) -> str:
    return theme.objects[int(draw.choice(len(theme.objects), p=theme.frequencies))]


def _any(draw: np.random.Generator) -> str:
    return world().names[int(draw.integers(len(world().names)))]


def _placed(
    draw: np.random.Generator, theme: str | None, names: Sequence[str], quality: Quality, *, unseen: bool, id: str
) -> Scene:
    low, high = quality.size
    sizes = sorted((low + (high - low) * draw.random() ** 1.3 for _ in names), reverse=True)
    taken: list[tuple[float, float, float]] = []
    things = []
    for name, size in zip(names, sizes, strict=True):
        x, y = _free_place(draw, size, taken)
        taken.append((x, y, size))
        seen = world().drawings[name]
        drawing = seen[int(draw.integers(len(seen)))]
        things.append(
            Thing(
                name=name,
                drawing=world().held_out.get(name, drawing) if unseen else drawing,
                x=x,
                y=y,
                size=float(size),
                turn=float(draw.normal(0, 0.25)),
                opacity=float(draw.uniform(*quality.opacity)),
                mirrored=bool(draw.random() < 0.5),
            )
        )
    themed = theme is not None and draw.random() < 0.5
    colour: Any = world().themes[theme].colour if theme is not None and themed else draw.integers(40, 256, 3)
    return Scene(
        id=id,
        theme=theme,
        things=tuple(things),
        background=np.clip(np.array(colour) / 255 + draw.normal(0, 0.08, (2, 3)), 0, 1),
        clouds=float(draw.random() * 0.12),
        blur=int(draw.integers(quality.blur[0], quality.blur[1] + 1)),
        noise=float(draw.uniform(*quality.noise)),
        seed=int(draw.integers(2**31)),
    )


def _free_place(draw: np.random.Generator, size: float, taken: Sequence[tuple[float, float, float]]) -> list[float]:
    """A centre at which the object covers little of the others; the last one tried where there is none."""
    for attempt in range(40):
        distance = 0.75 if attempt < 25 else 0.5
        x, y = draw.uniform(size * 0.45, SIDE - size * 0.45, 2).tolist()
        if all(math.hypot(x - a, y - b) > distance * (size + other) / 2 for a, b, other in taken):
            break
    return [x, y]
