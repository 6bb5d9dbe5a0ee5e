"""Stopping a job: between two cases at once, and within a long one by a signal to the main thread."""

import multiprocessing
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL = 0.2  # seconds between two looks
AGAIN = 10.0  # seconds after which it is raised again: an exception within a destructor is lost


class Cancelled(KeyboardInterrupt):
    """A job was asked to stop. A KeyboardInterrupt, so that its run closes as it does after Ctrl-C."""


class Watch:
    """Within it, Cancelled is raised in the main thread soon after the file `asked` appears.

    The run stays sound wherever it hits: files are written whole, and half a line of cases.jsonl is dropped on resume.
    A model may be left with a Tap half removed, so that it must not be used again.
    """

    def __init__(self, asked: Path) -> None:
        self._asked = asked
        self._armed = False
        self._raised = -AGAIN
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def check(self) -> None:
        """Raises Cancelled where the job was asked to stop."""
        now = time.monotonic()
        if self._armed and self._asked.exists() and now - self._raised >= AGAIN:
            self._raised = now
            raise Cancelled("it was cancelled")

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, lambda number, frame: self.check())
        self._armed = True
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._armed = False
        self._ended.set()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _look(self) -> None:
        main = threading.main_thread().ident
        while not self._ended.wait(INTERVAL):
            if self._asked.exists() and main is not None:
                signal.pthread_kill(main, signal.SIGUSR1)
                for process in multiprocessing.active_children():  # --workers: they would end their cases first
                    process.terminate()
