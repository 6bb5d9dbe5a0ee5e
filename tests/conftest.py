"""What every room's tests share: the default model, loaded once."""

import pytest
import torch

from probes.subject import Subject, load


@pytest.fixture(scope="session")
def smollm() -> Subject:
    """SmolLM2-135M-Instruct on the CPU in float32."""
    return load("smollm2-135m", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
