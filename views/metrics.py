"""What the metrics of a run's heads mean, and of which prompts they speak, in a reader's words."""

from dataclasses import dataclass

from analysis.runs import Run
from views import reading

NEEDLES = "needle retrieval prompts"
NATURAL = "natural prompts"
TWICE = "prompts of random tokens said twice"
PICTURES = "pictures, means over the tokens of their captions"
MENTIONS = "pictures, means over the true objects that their captions name"
TRACES = "traces, means over the tokens of their responses"
TEXT = "one text, means over its tokens"
WEIGHTS = "no prompts: read off the weights"
PAIR = "one pair of prompts"
KINDS = {"natural": NATURAL, "own": "your own prompts"}


@dataclass(frozen=True)
class Metric:
    """words: its name. about: what it counts, to stand behind the name. prompts: over which it is a mean."""

    words: str
    about: str = ""
    prompts: str = "prompts"


RETRIEVAL_SCORE = Metric(
    "retrieval score",
    "share of the answer's tokens that the head copied: as one was generated, the head looked hardest at that very "
    "token in the needle (Wu et al.)",
    NEEDLES,
)
WRITE = "how much the head writes: norm of its output by the norm of the residual stream that its block reads"

METRICS = {
    "retrieval": {
        "retrieval_score": RETRIEVAL_SCORE,
        "activation_frequency": Metric(
            "activation frequency", "share of the prompts on which the head copied at least once", NEEDLES
        ),
        "retrieval_score_released": Metric(
            "retrieval score, released code", "the same score as the authors' code computes it", NEEDLES
        ),
        "locos": Metric(
            "LOCOS",
            "how much more what the head reads in the needle raises the logits of the answer than what it reads "
            "elsewhere",
            NEEDLES,
        ),
        "needle_mass": Metric(
            "attention on the needle",
            "mean attention mass on the needle's tokens while the answer is said (over all steps where it is not said "
            "word for word)",
            NEEDLES,
        ),
    },
    "sinks": {
        "sink_rate": Metric(
            "sink rate", "share of the prompts on which the first token receives more than 0.3 of the head's attention"
        ),
        "first_share": Metric("attention on the first token", "mean share over queries"),
        "sink_share": Metric("attention on sinks", "mean share over queries, on all sinks that the prompt has"),
        "sink_share_rest": Metric("attention on later sinks", "the same without the first token"),
        "sink_contribution": Metric(
            "sinks' part of the output", "share of attention times length of the value that is on the sinks"
        ),
        "first_contribution": Metric("the first token's part of the output", "the same for the first token alone"),
        "value_ratio": Metric("length of a sink's value", "by the median of the other keys"),
        "write": Metric("write", WRITE),
        "unspent": Metric(
            "unspent attention", "what goes to no token: a learned sink takes it, or the softmax leaves it out"
        ),
        "local_share": Metric("attention nearby", "mean share on the nearest tokens, the query's own included"),
        "previous_share": Metric("attention on the previous token", "mean share over queries"),
        "delimiter_share": Metric(
            "attention on delimiters", "their share of the attention to all tokens after the first"
        ),
        "distance": Metric("distance", "mean distance in tokens of what the head attends to, sinks left out"),
    },
    "heads": {
        "sink_rate": Metric(
            "sink rate", "share of the prompts on which a sink receives more than 0.3 of the head's attention", NATURAL
        ),
        "write": Metric("write", WRITE, NATURAL),
        "local": Metric("local", "attention on the 8 nearest keys as a share of all that is on no sink", NATURAL),
        "previous": Metric("previous token", "attention on the token before the query", NATURAL),
        "induction": Metric(
            "induction", "attention from the second copy on what followed the query's token before", TWICE
        ),
        "duplicate": Metric(
            "duplicate token", "attention from the second copy on the query's token in the first", TWICE
        ),
        "retrieval_score": RETRIEVAL_SCORE,
        "sink_present": Metric(
            "attention on sinks, needle present", "mean share while the answer is generated", NEEDLES
        ),
        "sink_absent": Metric(
            "attention on sinks, needle absent", "the same with the needle taken out of the text", NEEDLES
        ),
    },
    "vision": {
        "divergence": Metric(
            "VHD",
            "vision-aware head divergence: how far what the head says moves as the picture is taken away (He et al.), "
            "surges left out",
            PICTURES,
        ),
        "image_mass": Metric(
            "attention on the image", "share of the head's attention that is on the picture", PICTURES
        ),
        "ratio": Metric(
            "grounding",
            "attention inside the box of the object that is named, as a share of that on the picture, by the box's "
            "share of the area: 1 is chance",
            MENTIONS,
        ),
        "hit": Metric(
            "pointing", "how often the patch with most attention lies in the box of the object that is named", MENTIONS
        ),
        "inside": Metric(
            "attention in the box",
            "share of the attention on the picture that is inside the named object's box",
            MENTIONS,
        ),
        "elsewhere_ratio": Metric(
            "grounding of another picture", "a control: the same with the map of another picture", MENTIONS
        ),
        "image_centric": Metric(
            "image-centric",
            "share of the tokens at which the head looks at the picture and past its sinks (VAR)",
            PICTURES,
        ),
        "question_mass": Metric("attention on the question", "", PICTURES),
        "system_mass": Metric("attention on what comes before the image", "", PICTURES),
        "generated_mass": Metric("attention on the caption so far", "", PICTURES),
        "divergence_squared": Metric("VHD, squared", "the same with the squared distance", PICTURES),
        "divergence_relative": Metric(
            "VHD, relative", "by the length of what the head says with the picture", PICTURES
        ),
    },
    "rhythm": {
        "distance": Metric("distance", "mean distance in tokens of what the head attends to (Li et al.)", TRACES),
        "distance_without_sink": Metric("distance, first token left out", "the same without the first token", TRACES),
        "sink_mass": Metric("attention on the first token", "mean share over the response's tokens", TRACES),
        "receiver_kurtosis": Metric(
            "kurtosis over sentences",
            "how few sentences hold the attention that sentences receive from later ones (Thought Anchors)",
            "traces",
        ),
    },
    "map": {
        "sink_share": Metric("attention on sinks", "mean share over queries, on all sinks of the text", TEXT),
        "first_share": Metric("attention on the first token", "mean share over queries", TEXT),
        "entropy": Metric("entropy", "of the head's attention, in nats, mean over queries", TEXT),
        "distance": Metric("distance", "mean distance in tokens of what the head attends to", TEXT),
        "image_share": Metric("attention on the picture", "mean share over the tokens behind it", TEXT),
    },
    "circuits": {
        "copying": Metric(
            "copying by its weights", "from 1, every token raises its own logit, to -1, every token lowers it", WEIGHTS
        ),
        "composition_Q": Metric("composition as query", "how much its query reads of the head it reads most", WEIGHTS),
        "composition_K": Metric("composition as key", "how much its key reads of the head it reads most", WEIGHTS),
        "composition_V": Metric("composition as value", "how much its value reads of the head it reads most", WEIGHTS),
    },
    "patch": {
        "patching": Metric(
            "patching", "share of the difference between two answers that the head's clean output restores", PAIR
        ),
        "attribution": Metric(
            "direct attribution", "logits that the head itself puts on one answer against the other", PAIR
        ),
    },
}


def metric_of(run: Run, name: str) -> Metric:
    return METRICS.get(reading.command(run), {}).get(name, Metric(name.replace("_", " ")))


def metric_order(run: Run) -> list[str]:
    """The metrics that the run's heads have: those that are known in the order above, then the others."""
    found = set(reading.heads(run)["metric"])
    known = [name for name in METRICS.get(reading.command(run), {}) if name in found]
    return known + sorted(found.difference(known))


def prompts_of(run: Run, name: str) -> str:
    """The prompts over which a metric is a mean."""
    if reading.command(run) == "sinks":
        judged = reading.summary(run)["judged_on"]
        return f"{KINDS.get(judged['kind'], judged['kind'])} {'with' if judged['bos'] else 'without'} BOS"
    return metric_of(run, name).prompts
