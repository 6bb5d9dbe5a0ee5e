"""Everything that Bench asks at once, as the line of the command line that asks it; and a run's question again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COUNT, CONTROLS, SEED = 24, 3, 0
TASKS = "needle"
ALONE = "treated"  # the name of a point that no variable tells from others


@dataclass(frozen=True)
class Question:
    """heads_from: the run that ranked the heads, where a metric chooses them."""

    intervention: str
    model: str
    tasks: str = TASKS
    count: int = COUNT
    controls: int = CONTROLS
    seed: int = SEED
    heads_from: str = ""

    @property
    def arguments(self) -> list[str]:
        """Without the word headscope."""
        line = ["intervene", self.intervention, "--task", self.tasks, "--model", self.model]
        for name, value, usual in (
            ("count", self.count, COUNT),
            ("controls", self.controls, CONTROLS),
            ("seed", self.seed, SEED),
        ):
            line += [f"--{name}", str(value)] if value != usual else []
        return line + (["--heads-from", self.heads_from] if self.heads_from else [])

    @property
    def line(self) -> str:
        return shlex.join(["headscope", *self.arguments])


def asked_by(request: Mapping[str, Any], point: Mapping[str, Any], ranking: Sequence[str], model: str) -> Question:
    """What a run of intervene, sweep or evict asked at one of its points.

    Heads stay chosen by their metric where the run asked for this alone and the run that ranked them is among
    `ranking`; else they are named.
    """
    template, source = str(request.get("template") or ""), str(request.get("heads_from") or "")
    kept = point["name"] == ALONE and bool(template) and (not source or source in ranking)
    return Question(
        template if kept else str(point["intervention"]),
        model,
        str(request.get("tasks") or TASKS),
        int(request.get("count", COUNT)),
        int(request.get("controls", CONTROLS)),
        int(request.get("seed", SEED)),
        source if kept else "",
    )
