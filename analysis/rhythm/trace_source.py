"""Where the traces of a run come from: a user's file, those that ship, or the model itself.

Those that the model writes are kept in the run as they come (traces.jsonl), so that a run that was stopped writes only
what is missing.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from analysis.rhythm.problems import Problem, problems
from analysis.rhythm.traces import (
    BATCH,
    NEW_TOKENS,
    TEMPERATURE,
    Trace,
    prompt_ids,
    read_traces,
    shipped_traces,
    tokenise,
    write_traces,
)  # fmt: skip
from analysis.runs import OpenRun, writing
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.sources import DEFAULT_MODEL
from probes.subject import Subject


@dataclass(frozen=True)
class Source:
    """given: traces as they stand. Where they are None, the model writes one for each problem."""

    given: tuple[Trace, ...] | None
    problems: tuple[Problem, ...] = ()
    temperature: float = TEMPERATURE
    new_tokens: int = NEW_TOKENS

    @property
    def count(self) -> int:
        return len(self.problems if self.given is None else self.given)

    def digest(self) -> str:
        """One hash for all texts, so that a run isn't resumed after a user's file has changed."""
        texts = [asdict(each) for each in (self.problems if self.given is None else self.given)]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def source_for(
    model: str, file: Path | None, *, write: bool, count: int | None, temperature: float | None, new_tokens: int | None
) -> Source:
    """The traces that were asked for: a file's, or the model's own, or those that ship with the default model.

    Raises HeadscopeError where a setting of writing goes with traces that are not written.
    """
    if file is not None and write:
        raise HeadscopeError("--traces and --write exclude each other: a file's traces are already written.")
    if write or (file is None and model != DEFAULT_MODEL):
        asked = problems() if count is None else problems(count)
        warmth = TEMPERATURE if temperature is None else temperature
        return Source(None, tuple(asked), warmth, new_tokens or NEW_TOKENS)
    if temperature is not None or new_tokens is not None:
        raise HeadscopeError("--temperature and --new-tokens are for traces that the model writes: add --write.")
    given = read_traces(file)[:count] if file is not None else shipped_traces(count)
    return Source(tuple(given))


def longest_of(subject: Subject, source: Source) -> int:
    """Tokens of the longest trace, as far as it is known before it is written.

    Raises HeadscopeError where the model has no room to write so many tokens.
    """
    if source.given is not None:
        return max(len(tokenise(subject, trace).ids) for trace in source.given)
    prompts = [Trace(each.id, "", "", each.question) for each in source.problems]
    longest = max(len(prompt_ids(subject, each)) for each in prompts)
    check_length(subject, longest, source.new_tokens)
    return longest + source.new_tokens


def traces_of(run: OpenRun, subject: Subject, source: Source, *, seed: int, quiet: bool) -> list[Trace]:
    """Every trace of a run, in order; those that are not written yet are written and kept."""
    if source.given is not None:
        return list(source.given)
    file = run.run.path / "traces.jsonl"
    found = _kept(file, source.problems)
    left = range(len(found), len(source.problems), BATCH)
    for start in track(left, "writing traces", console=Console(stderr=True), disable=quiet):
        found += _written(file, subject, source.problems[start : start + BATCH], source, seed=seed)
    return found


def _written(file: Path, subject: Subject, some: Sequence[Problem], source: Source, *, seed: int) -> list[Trace]:
    traces = write_traces(
        subject, some, temperature=source.temperature, new_tokens=source.new_tokens, batch=BATCH, seed=seed
    )
    with writing(file.parent), file.open("a") as kept:
        # A batch is one line: a batch that was cut short is written anew, by the same draws.
        kept.write(json.dumps([asdict(trace) for trace in traces], ensure_ascii=False) + "\n")
        kept.flush()
        os.fsync(kept.fileno())
    return traces


def _kept(file: Path, asked: Sequence[Problem]) -> list[Trace]:
    """The traces of the whole batches that a run holds; half a last line is cut off."""
    if not file.exists():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    found = [
        Trace(**trace | {"drawn": tuple(trace["drawn"])})
        for line in whole.split("\n")[:-1]
        for trace in json.loads(line)
    ]
    return found[: len(asked)]
