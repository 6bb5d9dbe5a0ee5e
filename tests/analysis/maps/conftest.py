"""A map run of a tiny random model, and the maps that the model itself gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.maps.map_run import MapCase, examine
from analysis.runs import OpenRun, Run
from probes.prompt import Prompt
from probes.subject import Subject

TOKENS = 45


def prompt_of(n: int) -> Prompt:
    """Random tokens, called t0, t1, ..."""
    ids = torch.randint(3, 90, (n,))
    text = " ".join(f"t{i}" for i in range(n))
    starts = np.cumsum([0] + [len(f"t{i} ") for i in range(n - 1)]).tolist()
    return Prompt(ids, text, tuple((a, a + len(f"t{i}")) for i, a in enumerate(starts)), {"start": (0, 1, 4)})


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Run]:
    """Keeps the maps of a subject's layers; gives the run, open as a killed one would leave it."""

    def kept(
        subject: Subject, *, n: int = TOKENS, layers: tuple[int, ...] = (0, 1), prompt: Prompt | None = None
    ) -> Run:
        with OpenRun.start(tmp_path / "runs", "map", {"n": n}) as run:
            run.add_case(examine(subject, MapCase(prompt or prompt_of(n)), layers=layers, run=run.run))
        return run.run

    return kept


@pytest.fixture
def maps(own_attention: Callable[..., object]) -> Callable[..., np.ndarray]:
    """(layer, head, query, key) by the model's own eager attention."""

    def found(subject: Subject, run: Run) -> np.ndarray:
        with torch.inference_mode(), own_attention(subject) as model:
            ids = torch.tensor([run.cases()[0]["ids"]])
            return torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, 0].numpy()

    return found
