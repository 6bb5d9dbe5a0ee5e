"""Maps through all layers, judged where the first true object is named."""

from typing import Any

import numpy as np
import pytest

from analysis.vision.explaining import explained
from analysis.vision.looking import Written
from analysis.vision.objects import Mention
from analysis.vision.pictures import Picture, Seen
from analysis.vision.relevance import explain
from probes.image_prompt import continued

CAPTION = [5, 6, 7, 8]
BOX = (0.0, 0.0, 0.5, 0.5)  # four of the tiny tower's sixteen patches


def said(*names: str) -> Written:
    """A caption that names so many objects, one with each token from the second on."""
    mentions = [Mention(name, i, i + 1) for i, name in enumerate(names)]
    return Written(CAPTION, "", mentions, list(range(1, 1 + len(names))))


def picture(*names: str) -> Picture:
    return Picture("one", tuple(Seen(name, BOX) for name in names), None, (), lambda: None)  # type: ignore[arg-type,return-value]


def test_the_row_that_writes_the_first_true_object_is_judged_by_its_box(tiny: Any, picture_prompt: Any) -> None:
    subject = tiny("llava")
    prompt = picture_prompt(subject, 3, 4)
    found = explained(subject, prompt, said("dog", "cat"), picture("cat", "cup"))
    assert found is not None
    row = len(prompt) - 1 + 2  # the cat's token is the third of the caption
    maps = explain(subject, continued(prompt, CAPTION), rows=[row])
    inside = [0, 1, 4, 5]
    for method in ("rollout", "relevancy"):
        own = maps[method].values[0, list(prompt.spans["image"])]
        share = own[inside].sum() / own.sum()
        assert found[f"{method}_inside"] == pytest.approx(share, rel=1e-4)
        assert found[f"{method}_ratio"] == pytest.approx(4 * share, rel=1e-4)
        assert found[f"{method}_hit"] == (np.argmax(own) in inside)


def test_a_caption_that_names_nothing_true_or_is_too_long_is_not_explained(
    tiny: Any, picture_prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny("llava")
    prompt = picture_prompt(subject, 3, 4)
    assert explained(subject, prompt, said("dog"), picture("cat")) is None
    monkeypatch.setattr("analysis.vision.explaining.EXPLAINED_TOKENS", len(prompt) + 3)
    assert explained(subject, prompt, said("cat"), picture("cat")) is None
