"""AMBER: what a description invents, covers, and invents as people would; and yes or no about objects.

    amber([respond(picture, text, vocabulary) for ...], form="paper", seed=0)["cog"]

Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", 2023
(arXiv 2311.07397). Its release finds nouns by a tagger and matches them by word vectors; here a Vocabulary finds them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.vision.objects import Vocabulary
from analysis.vision.pictures import Picture
from analysis.vision.ratios import Interval, Ratio, intervals
from probes.errors import HeadscopeError

Form = Literal["paper", "code"]


@dataclass(frozen=True)
class Response:
    """The objects a description names, repeated ones included; those in the picture; those absent but expected."""

    id: str
    named: tuple[str, ...]
    objects: frozenset[str]
    targets: frozenset[str]


@dataclass(frozen=True)
class Reply:
    """The text of an answer to a question about an object, and whether the object is there."""

    present: bool
    text: str


def respond(picture: Picture, text: str, vocabulary: Vocabulary) -> Response:
    """A description of a picture; its hallucination targets are `picture.likely`.

    Raises HeadscopeError where the vocabulary lacks an object of the picture or a target, and for a target that the
    picture shows.
    """
    vocabulary.check((*picture.names, *picture.likely))
    if shown := sorted(picture.names.intersection(picture.likely)):
        raise HeadscopeError(f"Picture {picture.id} shows {shown[0]!r}, which is listed as likely but absent.")
    named = tuple(mention.name for mention in vocabulary.mentions(text))
    return Response(picture.id, named, picture.names, frozenset(picture.likely))


def amber(responses: Sequence[Response], *, form: Form = "paper", seed: int) -> dict[str, Interval]:
    """CHAIR, Cover, Hal and Cog in [0, 1] (AMBER prints them times 100), with 95 % bootstrap intervals over responses.

    R are the objects that a response names, A those of the picture, H the targets; sums run over all responses.
    chair  named and not in A / named
    cover  |R ∩ A| / |A|
    hal    responses that name an object which is not in A / responses
    cog    form="paper": |R ∩ H| / |R|, the share of what is said; form="code", as released: |R ∩ H| / |H|

    The paper's R is a set; the code counts a noun in CHAIR as often as it is said. A ratio of nothing is 0: the code
    instead starts its counts at 0.001, and without targets takes the whole list for them ([-0:]), which we do not.
    Raises HeadscopeError without a response and for another form.
    """
    if form not in ("paper", "code"):
        raise HeadscopeError(f"AMBER is counted as in the paper or as in the code, not as in {form!r}.")
    if not responses:
        raise HeadscopeError("AMBER needs at least one response.")
    rows = np.array([_counts(one, form) for one in responses], dtype=float)
    said, invented, covered, true, expected, targets = rows.T
    distinct = np.array([len(set(one.named)) for one in responses], dtype=float)
    ratios = {
        "chair": Ratio(invented, said),
        "cover": Ratio(covered, true),
        "hal": Ratio((invented > 0).astype(float), np.ones(len(responses))),
        "cog": Ratio(expected, distinct if form == "paper" else targets),
    }
    return intervals(ratios, seed=seed)


def read_answer(text: str) -> bool | None:
    """Exactly "Yes" or "No", as AMBER's release asks for; None for anything else, which is wrong either way."""
    return {"Yes": True, "No": False}.get(text)


def discriminative(replies: Sequence[Reply]) -> dict[str, Interval]:
    """Accuracy, precision, recall and F1 with "No", the refusal to see what is not there, as the positive class.

    In [0, 1], with Wilson's 95 % intervals. The code's 0.0001 in the denominator of F1 is left out: 0 / 0 is 0.
    Raises HeadscopeError without a reply.
    """
    if not replies:
        raise HeadscopeError("AMBER needs at least one reply.")
    absent = np.array([not one.present for one in replies])
    said = [read_answer(one.text) for one in replies]
    said_no = np.array([one is False for one in said])
    right = np.array([one is reply.present for one, reply in zip(said, replies, strict=True)])
    hits = (absent & said_no).astype(float)
    ratios: Mapping[str, Ratio] = {
        "accuracy": Ratio(right.astype(float), np.ones(len(replies))),
        "precision": Ratio(hits, said_no.astype(float)),
        "recall": Ratio(hits, absent.astype(float)),
        "f1": Ratio(2 * hits, said_no.astype(float) + absent, "f1"),
    }
    return {name: ratio.wilson() for name, ratio in ratios.items()}


def amber_score(chair: float, f1: float) -> float:
    """(1 - CHAIR + F1) / 2 in [0, 1]; AMBER prints it times 100."""
    return (1 - chair + f1) / 2


def _counts(response: Response, form: Form) -> tuple[int, int, int, int, int, int]:
    distinct = set(response.named)
    said = distinct if form == "paper" else response.named
    return (
        len(said),
        sum(name not in response.objects for name in said),
        len(distinct & response.objects),
        len(response.objects),
        len(distinct & response.targets),
        len(response.targets),
    )
