"""What does a Tap cost?

    python bench/tap.py                              # the default model at 512, 1024 and 2048 tokens
    python bench/tap.py --lengths 256 --repeats 1    # does it run?

Prefill and decode as the model runs without headscope, under a Tap, and with the full maps that Transformers gives;
and many ablated continuations of one prompt, decoded one by one on copies of its cache or side by side on one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

from harness import Groups, Work, main

from analysis.compiling import compile_plan
from analysis.interventions import ablation
from probes.generation import greedy, greedy_branches, last_logits
from probes.plan import Plan
from probes.readers import NeedleReader, StatisticsReader
from probes.tap import Tap

NEW_TOKENS = 16
BRANCHES = 19
ABLATED = 10  # heads silenced in each branch
NEEDLE = 20  # tokens, in the middle of the text
STATISTICS = ("entropy", "received", "top_key")

Around = Callable[[Work], AbstractContextManager[Any]]


def plain(_: Work) -> AbstractContextManager[Any]:
    return nullcontext()


@contextmanager
def eager(work: Work) -> Iterator[None]:
    config = work.subject.model.config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    yield
    config._attn_implementation = before


def empty_tap(work: Work) -> Tap:
    return Tap(work.subject)


def reading_statistics(work: Work) -> Tap:
    return Tap(work.subject, readers=[StatisticsReader(STATISTICS)])


def reading_needle(work: Work) -> Tap:
    middle = work.length // 2
    return Tap(work.subject, readers=[NeedleReader(range(middle, middle + NEEDLE))])


def prefilling(around: Around, work: Work, **options: Any) -> Callable[[], None]:
    subject = work.subject
    ids = work.ids[None].to(subject.device)

    def run() -> None:
        with around(work):
            subject.model(input_ids=ids, use_cache=False, **last_logits(subject), **options)

    return run


def decoding(around: Around, work: Work) -> Callable[[], None]:
    cache = deepcopy(work.cache)

    def run() -> None:
        with around(work):
            greedy(work.subject, cache, int(work.ids[-1]), NEW_TOKENS)

    return run


def plans(work: Work) -> list[Plan]:
    """Branch i silences every 19th head from head i on, ten of them."""
    anatomy, device = work.subject.anatomy, work.subject.device
    heads = anatomy.heads()
    sets = [ablation(heads[i::BRANCHES][:ABLATED], "query_zero", "decode") for i in range(BRANCHES)]
    return [compile_plan(anatomy, [each], device=device) for each in sets]


def one_by_one(work: Work) -> Callable[[], None]:
    cache, every = work.cache, plans(work)

    def run() -> None:
        for each in every:
            with Tap(work.subject, plan=each):
                greedy(work.subject, deepcopy(cache), int(work.ids[-1]), NEW_TOKENS)

    return run


def together(work: Work) -> Callable[[], Any]:
    every = Plan.stack(plans(work))
    return partial(greedy_branches, work.subject, work.cache, int(work.ids[-1]), NEW_TOKENS, every, BRANCHES)


GROUPS: Groups = {
    "prefill": {
        "SDPA, no Tap": partial(prefilling, plain),
        "empty Tap": partial(prefilling, empty_tap),
        f"StatisticsReader ({', '.join(STATISTICS)})": partial(prefilling, reading_statistics),
        "Transformers' eager, output_attentions=True": partial(prefilling, eager, output_attentions=True),
    },
    f"decode {NEW_TOKENS} tokens": {
        "SDPA, no Tap": partial(decoding, plain),
        "NeedleReader": partial(decoding, reading_needle),
    },
    f"{BRANCHES} ablated continuations of {NEW_TOKENS} tokens": {"one by one": one_by_one, "together": together},
}

if __name__ == "__main__":
    main(GROUPS, "What does a Tap cost?")
