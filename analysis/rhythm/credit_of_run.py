"""The credit of every token of a finished run, as a file: by the curves that the run judges each trace by."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch

from analysis.rhythm.credit import Strategy, token_weights
from analysis.rhythm.credit_export import CreditedTrace, export
from analysis.rhythm.curves import cross_fitted
from analysis.rhythm.settings import Setting
from analysis.runs import Run
from probes.errors import HeadscopeError


@dataclass(frozen=True)
class Export:
    """Where to, and by which strategy. Raises HeadscopeError for a strategy that there is not."""

    file: Path
    strategy: str

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise HeadscopeError(f"--strategy {self.strategy!r} is none of {', '.join(get_args(Strategy))}.")


def export_credit(run: Run, asked: Export) -> None:
    """Write the credit of every trace that the run read."""
    export(asked.file, _credited(run, cast(Strategy, asked.strategy)))


def _credited(run: Run, strategy: Strategy) -> Iterator[CreditedTrace]:
    records, summary = run.cases(), run.summary()
    setting = Setting.from_facts(summary["settings"])
    curves = cross_fitted(
        records, run.path / "arrays", setting, horizons=list(summary["horizons"]), seed=run.manifest["request"]["seed"]
    )
    for record, own in zip(records, curves, strict=True):
        waad, fai = torch.from_numpy(own.waad), torch.from_numpy(own.fai)
        everything = torch.ones(1, len(waad), dtype=torch.bool)
        weights = token_weights(strategy, waad[None], fai[None], everything)[0]
        yield CreditedTrace(record["case"], strategy, tuple(record["tokens"]), weights, waad, fai)
