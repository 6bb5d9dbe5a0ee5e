"""What does a head ask on average? The mean queries that `query_mean` puts in place of its own."""

from torch import Tensor

from analysis.needles import build, grid, triples
from probes.capture import mean_queries
from probes.subject import Subject

CALIBRATION_TOKENS = 512  # least length of the prompts whose mean query stands in for a head's own


def calibrate(subject: Subject, tokens: int, *, seed: int) -> tuple[dict[int, Tensor], list[str]]:
    """Mean queries over three needle prompts with the needle in the middle, and the names of those."""
    cases = grid(triples("detect"), [tokens], [0.5], seed=seed)
    return mean_queries(subject, [build(subject, case) for case in cases]), [case.id for case in cases]
