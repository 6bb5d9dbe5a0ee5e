"""What bench/train_credit.py trains: the small model of bench/credit_task.py, or one that headscope loads, on sums."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import credit_task
from credit_task import Sum

from analysis.rhythm.reading import HORIZONS, Horizon
from probes.subject import load

GENERATIONS = 8  # completions of a problem
NEAR = Horizon(4, 40)  # in characters: the worked sums have 30 to 40; the paper's 10 to 100 is for longer responses
RATE, LOADED_RATE = 3e-5, 1e-6  # of the small model; of a loaded one, the paper's

QUESTION = "Compute {} + {} and write the sum."


@dataclass(frozen=True)
class Setup:
    """judge: what is said of a model on held-out problems, by name; None where it is not followed."""

    model: Any
    tokenizer: Any
    prompts: list[Any]
    reward: Callable[..., list[float]]
    horizon: Horizon
    longest: int
    rate: float
    judge: Callable[[Any], dict[str, float]] | None


def small(seed: int, options: argparse.Namespace) -> Setup:
    judged = credit_task.held_out(options.judged)
    model, tokenizer = credit_task.base(options.out, seed, judged, options.device)
    prompts = [problem.prompt for problem in _drawn(seed, options, frozenset(judged))]

    def judge(of: Any) -> dict[str, float]:
        drawn, greedy = (credit_task.accuracy(of, tokenizer, judged, greedy=each) for each in (False, True))
        return {"accuracy": drawn, "greedy": greedy}

    return Setup(model, tokenizer, prompts, right_sum, NEAR, credit_task.LONGEST, RATE, judge)


def loaded(seed: int, options: argparse.Namespace) -> Setup:
    """Two terms of one digit, asked through the chat template: the default model adds no more at temperature 1.

    In float32: bfloat16 weights could not follow steps as small as these.
    """
    subject = load(options.model, device=options.device, dtype="float32")
    prompts = [
        [{"role": "user", "content": QUESTION.format(*problem.terms)}]
        for problem in _drawn(seed, options, frozenset(), terms=2, largest=9)
    ]
    model = subject.model.requires_grad_(True)
    return Setup(model, subject.tokenizer, prompts, sum_named, HORIZONS["v2"], options.tokens, LOADED_RATE, judge=None)


def right_sum(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """1 where the worked sum ends in the right number, else 0."""
    answers = [str(sum(map(int, prompt.rstrip("=").split("+")))) for prompt in prompts]
    return [float(credit_task.answer_of(text) == wanted) for text, wanted in zip(completions, answers, strict=True)]


def sum_named(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """1 where the sum stands in the answer, else 0."""
    answers = [str(sum(map(int, re.findall(r"\d+", prompt[0]["content"])))) for prompt in prompts]
    return [
        float(wanted in re.findall(r"\d+", reply[0]["content"]))
        for reply, wanted in zip(completions, answers, strict=True)
    ]


def _drawn(seed: int, options: argparse.Namespace, without: frozenset[Sum], **sizes: int) -> list[Sum]:
    """Problems of the training, the same for every arm of a seed; held-out ones are left out."""
    stream = credit_task.sums(1_000_000 + seed, without, **sizes)
    return [next(stream) for _ in range(options.steps * options.batch // GENERATIONS)]
