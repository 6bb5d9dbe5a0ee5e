"""Seconds that a call takes, a GPU's work included."""

import time
from collections.abc import Callable
from typing import Any

import torch


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start
