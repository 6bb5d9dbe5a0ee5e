"""Do maps through all layers point at what is named? Baselines for the grounding of single heads.

The row that writes the first object of a caption that is in the picture, explained by attention rollout and by gradient
relevancy (see relevance), judged as a head's map is (see grounding).
"""

from collections.abc import Sequence
from typing import Protocol

from analysis.vision.grounding import ground
from analysis.vision.objects import Mention
from analysis.vision.pictures import Picture
from analysis.vision.relevance import EXPLAINED_TOKENS, explain
from probes.image_prompt import ImagePrompt, continued
from probes.subject import Subject

METHODS = ("rollout", "relevancy")
MEASURES = ("hit", "inside", "ratio")


class Said(Protocol):
    """A caption's tokens, the objects it names, and the step that began each."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def mentions(self) -> Sequence[Mention]: ...

    @property
    def steps(self) -> Sequence[int]: ...


def explained(subject: Subject, prompt: ImagePrompt, said: Said, picture: Picture) -> dict[str, float] | None:
    """`rollout_hit`, `relevancy_ratio`, ... of one caption; one forward and one backward.

    None where no object of the picture is named, or the caption is too long to explain.
    """
    whole = continued(prompt, said.ids)
    named = ((one.name, step) for one, step in zip(said.mentions, said.steps, strict=True) if one.name in picture.names)
    first = next(named, None)
    if first is None or len(whole) > EXPLAINED_TOKENS:
        return None
    name, step = first
    found = explain(subject, whole, rows=[len(prompt) - 1 + step])
    boxes = [one.box for one in picture.objects if one.name == name]
    judged: dict[str, float] = {}
    for method in METHODS:
        of_image = found[method].isel(target=0, key=list(prompt.spans["image"])).rename(key="image")
        each = ground(of_image, prompt.patches.numpy(), boxes)
        judged |= {f"{method}_{measure}": float(each[measure]) for measure in MEASURES}
    return judged
