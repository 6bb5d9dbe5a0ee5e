"""What can be asked next: the commands, each with its question, and why one is not for now."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from analysis.runs import Run
from views import reading

SOURCE = "{source}"  # stands for the retrieval run of the same model
EXTRAS = {"lm_eval": "harness"}  # of a package, to what brings it


@dataclass(frozen=True)
class Step:
    """A command of the command line. run: what its runs are called. of_model: it asks about one language model.
    package: what has to be installed beside headscope."""

    run: str
    question: str
    arguments: str
    of_model: bool = True
    package: str = ""


STEPS = (
    Step("retrieval", "Which heads fetch facts from the context?", "retrieval"),
    Step(
        "ablation",
        "Does the model lose the fact without them, and not without random ones?",
        "ablate --heads-from {source}",
    ),
    Step("sinks", "Where is attention parked, and which heads do nothing?", "sinks"),
    Step("heads", "What is every head for?", "heads"),
    Step("circuits", "What do the weights say a head copies, writes and looks for?", "circuits"),
    Step(
        "intervene",
        "What follows when heads are changed?",
        'intervene "query_zero @ top(retrieval_score, 10) in decode" --task needle,facts --heads-from {source}',
    ),
    Step("stream", "Which heads need the whole context?", "stream --heads-from {source}"),
    Step(
        "patch",
        "Which heads carry what makes two prompts end differently?",
        'patch --clean "The capital of France is" --corrupt "The capital of Japan is" '
        '--answer " Paris" --wrong " Tokyo"',
    ),
    Step("evict", "What does a model lose without its sinks?", "evict"),
    Step("map", "What does a head attend to over a long text?", "map --tokens 2000 --layers 17,18"),
    Step("rhythm", "Does reasoning have a rhythm?", "rhythm"),
    Step(
        "benchmark",
        "How do public benchmarks change?",
        'benchmark "output_zero @ top(retrieval_score, 10)" --task arc_easy --limit 100 --heads-from {source}',
        package="lm_eval",
    ),
    Step("pairs", "Does a gate remove the sink?", "pairs", of_model=False),
    Step("vision", "Which heads look at the picture?", "vision", of_model=False),
    Step("hallucinate", "Does a mitigation make the model invent less?", "hallucinate", of_model=False),
)


def command(step: Step, model: str, of_subject: Iterable[Run]) -> str:
    """The line to type."""
    source = _retrieval_of(of_subject)
    line = step.arguments.replace(SOURCE, source.id if source else "last")
    return f"headscope {line}" + (f" --model {shlex.quote(model)}" if step.of_model else "")


def asked_model(run: Run) -> str:
    """The model as the run's command named it, which loads it again."""
    return str(run.manifest.get("request", {}).get("model") or reading.model_name(run))


def why_not(step: Step, runs: Iterable[Run], of_subject: Iterable[Run]) -> tuple[str, Run | None]:
    """Why a step is not for now, with the run that answers it already; an empty reason where it can be typed.

    runs: all of the folder. of_subject: those of the model that the step would ask about.
    """
    there = list(of_subject if step.of_model else runs)
    if done := next((run for run in there if reading.command(run) == step.run and run.finished), None):
        return "It has been asked.", done
    if SOURCE in step.arguments and _retrieval_of(there) is None:
        return "It needs a finished retrieval run of this model.", None
    if step.package and find_spec(step.package) is None:
        return f"It needs packages: pip install 'headscope\\[{EXTRAS[step.package]}\\]'", None
    return "", None


def _retrieval_of(runs: Iterable[Run]) -> Run | None:
    return next((run for run in runs if reading.command(run) == "retrieval" and run.finished), None)
