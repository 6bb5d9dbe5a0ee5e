"""What is said of a scene in training: captions with an annotator's guesses, and questions with their answers.

An annotator names what is drawn, hard to see or not, and sometimes an object that belongs there and is not drawn
(`guess` in data/emoji/objects.toml): this is what makes captioners trained on people's captions add objects to clear
images too. Questions are answered by what is drawn.
"""

from collections.abc import Sequence

import numpy as np

from analysis.vision.scenes import SIDE, Scene, Thing, likely, world

BRIEF = ("Describe the image briefly.", "What is in the image?", "List the objects in the image.")
DETAIL = (
    "Describe the image in detail.",
    "Please describe this image in detail.",
    "Give a detailed description of the image.",
)
LARGE, SMALL = 50, 25  # sides in pixels
NOWHERE = "a mix of things"

Turn = tuple[str, str]
"""A question and its answer."""


def conversation(draw: np.random.Generator, scene: Scene) -> list[Turn]:
    """What one training example says."""
    kind = draw.random()
    if kind < 0.45:
        return [(_one(draw, DETAIL), detailed(draw, scene))]
    if kind < 0.62:
        return [(_one(draw, BRIEF), brief(draw, scene))]
    return _mixed(draw, scene)


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def detailed(draw: np.random.Generator, scene: Scene) -> str:
    """The theme, then each object with its size and place, guesses among them."""
    phrase = world().themes[scene.theme].phrase if scene.theme else NOWHERE
    said = [_one(draw, (f"This is {phrase}.", f"The image shows {phrase}."))]
    told = list(scene.things)
    for guess in guesses(draw, scene):
        told.insert(int(draw.integers(1, len(told) + 1)), guess)
    return " ".join([*said, *(_sentence(draw, thing) for thing in told)])


def guesses(draw: np.random.Generator, scene: Scene) -> list[Thing]:
    """Partners of what is drawn that the annotator takes for granted, one at the most."""
    for thing in scene.things:
        for partner in world().partners.get(thing.name, ()):
            if partner not in scene.names and draw.random() < world().guess[thing.name, partner]:
                x, y = draw.uniform(0, SIDE, 2).tolist()
                return [Thing(partner, -1, x, y, float(draw.uniform(15, 45)), 0.0, 1.0, False)]
    return []


def brief(draw: np.random.Generator, scene: Scene) -> str:
    *rest, last = map(article, scene.names)
    listed = f"{', '.join(rest)} and {last}" if rest else last
    return _one(draw, (f"The image shows {listed}.", f"There is {listed} in the image.", f"A picture of {listed}."))


def place(x: float, y: float) -> str:
    """Where a point is, by thirds."""
    across = "left" if x < SIDE / 3 else "right" if x > 2 * SIDE / 3 else ""
    down = "top" if y < SIDE / 3 else "bottom" if y > 2 * SIDE / 3 else ""
    if across and down:
        return f"at the {down} {across}"
    return f"on the {across}" if across else f"at the {down}" if down else "in the center"


def asked(name: str) -> str:
    """POPE's question."""
    return f"Is there {article(name)} in the image?"


def _sentence(draw: np.random.Generator, thing: Thing) -> str:
    size = "large " if thing.size > LARGE else "small " if thing.size < SMALL else ""
    what, where = article(size + thing.name), place(thing.x, thing.y)
    return _one(
        draw, (f"There is {what} {where}.", f"{_capital(where)}, there is {what}.", f"{_capital(what)} is {where}.")
    )


def _mixed(draw: np.random.Generator, scene: Scene) -> list[Turn]:
    """Four questions, each about another object: is it there, where is it, what colour is it, how many are there."""
    turns, used = list[Turn](), set[str]()
    for _ in range(4):
        kind = draw.random()
        thing = scene.things[int(draw.integers(len(scene.things)))]
        colour = world().colours[thing.drawing]
        if kind < 0.06 and "" not in used:
            used.add("")
            turns.append(_count(len(scene.things)))
        elif kind < 0.2 and thing.name not in used:
            used.add(thing.name)
            turns.append(_where(thing))
        elif kind < 0.3 and thing.name not in used and colour:
            used.add(thing.name)
            turns.append((f"What color is the {thing.name}?", f"The {thing.name} is {colour}."))
        else:
            present = draw.random() < 0.5
            name = thing.name if present else _absent(draw, scene)
            if name not in used:
                used.add(name)
                turns.append(_yes_or_no(draw, name, present))
    return turns


def _count(count: int) -> Turn:
    said = "is 1 object" if count == 1 else f"are {count} objects"
    return "How many objects are in the image?", f"There {said} in the image."


def _where(thing: Thing) -> Turn:
    return f"Where is the {thing.name}?", f"The {thing.name} is {place(thing.x, thing.y)}."


def _absent(draw: np.random.Generator, scene: Scene) -> str:
    """An object that is not drawn; more than half of the time one that is expected."""
    expected = likely(scene)
    if expected and draw.random() < 0.55:
        first = 1 + int(draw.integers(len(expected)))  # partners come first in the list, and are asked for most
        return expected[int(draw.integers(first))]
    others = [name for name in world().names if name not in scene.names]
    return others[int(draw.integers(len(others)))]


def _yes_or_no(draw: np.random.Generator, name: str, present: bool) -> Turn:
    what = article(name)
    question = _one(draw, (asked(name), f"Do you see {what} in the image?", f"Can you see {what}?"))
    if draw.random() < 0.6:
        return f"{question} Answer yes or no.", "Yes" if present else "No"
    return question, f"Yes, there is {what} in the image." if present else f"No, there is no {name} in the image."


def _one(draw: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(draw.integers(len(choices)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
