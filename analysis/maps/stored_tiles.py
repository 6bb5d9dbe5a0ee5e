"""Tiles that were computed once, kept in the run's arrays/tiles so that a second look takes no computation.

A tile's name is a hash of everything that decides it. The folder is bounded: the tiles not looked at for longest go
first. Where a run can't be written to, nothing is stored and nothing is said: the tile is there all the same.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from analysis.maps.kept_layers import ARRAYS
from analysis.runs import Run

FORMAT = 1  # raised whenever the same request would give another tile
MOST_BYTES = 64_000_000  # of all stored tiles of a run: some 60 of 512 x 512 cells


def stored_file(run: Run, asked: Mapping[str, Any]) -> Path:
    """Where the tile of this request is, or would be. asked: all that decides it, as plain data."""
    text = json.dumps({"format": FORMAT, **asked}, sort_keys=True)
    return run.path / ARRAYS / "tiles" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def stored(file: Path, shape: tuple[int, int]) -> Float[np.ndarray, "row column"] | None:
    """The tile, or None where it isn't there in full."""
    try:
        cells = load_file(file)["cells"]
    except (OSError, SafetensorError, KeyError):
        return None
    if cells.shape != shape or cells.dtype != np.float32:
        return None
    with suppress(OSError):
        os.utime(file)  # looked at now
    return cells


def store(file: Path, cells: Float[np.ndarray, "row column"], *, most: int = MOST_BYTES) -> None:
    """Keep a tile, and let the oldest go that are too many."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        file.parent.mkdir(exist_ok=True)
        save_file({"cells": np.ascontiguousarray(cells, dtype=np.float32)}, scratch)
        scratch.replace(file)
        _let_go(file.parent, most)
    except (OSError, SafetensorError):
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _let_go(folder: Path, most: int) -> None:
    tiles = []
    for file in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another browser's tile may make it go first
            facts = file.stat()
            tiles.append((facts.st_mtime_ns, facts.st_size, file))
    held = 0
    for _, size, file in sorted(tiles, reverse=True):
        held += size
        if held > most:
            file.unlink(missing_ok=True)
