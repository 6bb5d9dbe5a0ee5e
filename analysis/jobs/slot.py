"""The worker's one place for a model: the last one stays, until another is needed or somebody asks to let it go."""

import gc
import time
from collections.abc import Hashable
from pathlib import Path

import torch

from analysis.jobs.memory import SLOT, UNLOAD
from analysis.loading import bytes_held
from analysis.runs import write_json, writing
from analysis.study import ModelChoice
from probes.subject import Subject, choose_device, choose_dtype


class Slot:
    """Loads models, and keeps the last of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key: Hashable = None
        self._subject: Subject | None = None

    def load(self, choice: ModelChoice) -> Subject:
        """The model in memory where it is the one asked for; else that one goes before the new one is read."""
        key = _key(choice)
        if self._subject is None or key != self._key:
            self.drop()
            subject = choice.read()
            self._key, self._subject = key, subject
            self._say(subject)
        return self._subject

    def drop(self) -> None:
        self._key = self._subject = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for name in (SLOT, UNLOAD):
            (self._folder / name).unlink(missing_ok=True)

    def drop_if_asked(self) -> None:
        if (self._folder / UNLOAD).exists():
            self.drop()

    def _say(self, subject: Subject) -> None:
        facts = {
            "format": 1,
            "model": subject.name,
            "device": str(subject.device),
            "dtype": subject.dtype,
            "bytes": bytes_held(subject),
            "since": time.time(),
        }
        with writing(self._folder):
            write_json(self._folder / SLOT, facts)


def _key(choice: ModelChoice) -> Hashable:
    """What must be the same for a model to be used again: its name, where and how it computes, and its files."""
    device = choose_device(choice.device)
    path = Path(choice.model).expanduser()
    inside = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [(file.resolve(), file.stat().st_size, file.stat().st_mtime_ns) for file in inside]
    return choice.model, str(device), choose_dtype(choice.dtype, device), tuple(files)
