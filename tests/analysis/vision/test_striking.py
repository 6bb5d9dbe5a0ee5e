"""Words struck out by a detector: the threshold, and what is counted before and after."""

from typing import Any

import numpy as np
import pytest
import torch

from analysis.vision import inventions
from analysis.vision.confidence import log_probabilities
from analysis.vision.detection import split
from analysis.vision.striking import threshold

NAMES = ("cat", "dog", "cup")
CAPTION = "A cat, a dog and a cup."


def row(number: int, doubt: float) -> dict[str, Any]:
    """A picture of a cat and a dog, of which a cup is said too; it is doubted by so much, the others by 1."""
    mentions = [
        {"name": name, "start": CAPTION.index(name), "stop": CAPTION.index(name) + 3, "step": step,
         "invented": name == "cup"}
        for step, name in enumerate(NAMES)
    ]  # fmt: skip
    heads = [[1.0, 2.0]]
    return {
        "picture": f"p{number}", "caption": CAPTION, "tokens": list(CAPTION), "mentions": mentions,
        "objects": [{"name": name, "box": [0, 0, 1, 1]} for name in ("cat", "dog")],
        "token_divergence": [3.0, 3.0, 3.0], "summed_ratio": [1.0, 1.0, 1.0], "per_head": {},
        "log_probability": [-1.0, -1.0, -doubt],
        "at_mentions": [{"divergence": heads, "image_mass": heads}] * 3,
    }  # fmt: skip


def test_the_threshold_loses_no_more_true_words_than_it_may() -> None:
    scores, invented = np.arange(200.0), np.zeros(200, dtype=bool)
    invented[-50:] = True
    assert threshold(scores, invented) == 148  # 150 true words: one of them may go
    assert threshold(scores, invented, lost=0.1) == 134
    tied = np.zeros(200)
    assert (tied > threshold(tied, invented, lost=0.5)).sum() == 0


def test_a_detector_that_knows_strikes_the_invented_words_alone() -> None:
    found = inventions.detectors([row(i, 2.0) for i in range(12)], seed=0)["log_probability"]
    assert found["value"] == 1
    struck = found["struck"]
    assert (struck["invented"]["value"], struck["true"]["value"]) == (1, 0)
    assert struck["invented"]["n"] == 6  # captions of the judging half
    assert struck["difference"]["chair_i"]["value"] == pytest.approx(-1 / 3)
    assert struck["difference"]["recall"]["value"] == 0
    assert struck["verdict"] == "helps"


def test_a_blind_detector_strikes_nothing() -> None:
    found = inventions.detectors([row(i, 1.0) for i in range(12)], seed=0)["token_divergence"]
    assert found["value"] == 0.5
    assert found["struck"]["invented"]["value"] == 0
    assert found["struck"]["verdict"] == "no effect"


def test_the_threshold_is_set_without_the_captions_that_judge_it() -> None:
    rows = [row(i, 2.0) for i in range(12)]
    choosing = split([each["picture"] for each in rows], seed=0)
    for each, chosen in zip(rows, choosing, strict=True):
        each["log_probability"] = [-1.0, -9.0, -5.0] if not chosen else each["log_probability"]
    struck = inventions.detectors(rows, seed=0)["log_probability"]["struck"]
    assert struck["threshold"] == 1
    assert struck["true"]["value"] == 0.5  # every dog of the judging half goes with the cups
    assert struck["difference"]["recall"]["value"] == -0.5


def test_log_probabilities_are_those_of_each_caption_run_alone(tiny: Any, picture_prompt: Any) -> None:
    subject = tiny("llava")
    prompts = [picture_prompt(subject, before, behind) for before, behind in ((3, 4), (1, 2), (2, 6))]
    captions = [[5, 6, 7], [8], [9, 10, 11, 12]]
    found = log_probabilities(subject, prompts, captions, batch=2)
    for i, (prompt, caption) in enumerate(zip(prompts, captions, strict=True)):
        ids = torch.cat([prompt.ids, torch.tensor(caption)])[None]
        with torch.inference_mode():
            logits = subject.model(ids, **prompt.inputs).logits[0].log_softmax(-1)
        own = found.isel(token=found["prompt"].values == i)
        assert own["step"].values.tolist() == list(range(len(caption)))
        for step, token in enumerate(caption):
            expected = float(logits[len(prompt) - 1 + step, token])
            assert float(own[step]) == pytest.approx(expected, abs=1e-4)
