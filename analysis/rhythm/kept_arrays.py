"""What a rhythm run keeps of a trace's tokens for every head: small enough to average over other heads later.

    waad          (layer, head, token)           at the window that was asked for
    fai           (horizon, layer, head, token)  NaN where no later token is within the horizon
    waad_windows  (window, layer, head, token)   at further windows, of a run that varies them

Half precision: a mean over heads of these numbers is off by less than a thousandth of itself.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from analysis.runs import writing
from probes.errors import HeadscopeError

Arrays = Mapping[str, NDArray[np.float16]]


def keep(file: Path, arrays: Mapping[str, NDArray[np.floating]]) -> None:
    """Write a trace's arrays, whole or not at all."""
    # safetensors writes an array's memory as it lies, which for a transposed one is another array.
    tensors = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in arrays.items()}
    with writing(file.parent):
        file.parent.mkdir(exist_ok=True)
        scratch = file.with_name(f".{file.name}")
        save_file(tensors, scratch)
        scratch.replace(file)


def kept(file: Path) -> Arrays:
    """A trace's arrays. Raises HeadscopeError where they are missing or damaged."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        raise HeadscopeError(f"{file} is missing or damaged: delete the run's folder and run again.") from None
