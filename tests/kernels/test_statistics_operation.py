"""What may be asked of the statistics, who answers, and how PyTorch sees the operation: compiled, faked, checked."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention import visible_pairs, weights
from kernels.statistics import PER_KEY, STATISTICS, QueryWindow, Tile, map_statistics, operation, statistics

Measure = Callable[..., dict[str, Tensor]]
WINDOWS = {"early": QueryWindow(stop=5), "next": QueryWindow(nearest=1, farthest=3)}


def call(n: int = 9, m: int = 12, device: str = "cpu") -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Every option at once."""
    with torch.device(device):
        return _call(n, m)


def _call(n: int, m: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    q, k = torch.randn(2, 2, n, 8), torch.randn(2, 1, m, 8)
    first = (torch.arange(m) < 3).expand(2, m)
    return q, k, {
        "scale": 0.4,
        "wanted": STATISTICS,
        "window": 8,
        "softcap": 3.0,
        "sink": torch.randn(2),
        "padding": torch.arange(m) >= torch.tensor([[0], [2]]),
        "mask": torch.randn(2, 1, n, m),
        "query_positions": torch.arange(m - n, m).expand(2, n) + 3,
        "key_positions": torch.arange(m).expand(2, m) + 3,
        "spans": {"first": first, "rest": ~first},
        "windows": WINDOWS,
        "clip": 4,
        "top": 3,
        "tile": Tile((1, n), (0, m - 1), 4),
        "edges": (0, 1, 4),
    }  # fmt: skip


def expected_shapes(b: int, h: int, n: int, m: int) -> dict[str, tuple[int, ...]]:
    """Of the results of `call`."""
    per_query = ("lse", "entropy", "distance", "clipped_distance", "top_key", "top_weight", "self_mass",
                 "participation", "mass:first", "mass:rest")  # fmt: skip
    tall, wide = -(-(n - 1) // 4), -(-(m - 1) // 4)
    cells = (b, h, -(-(n - 1) // tall), -(-(m - 1) // wide))
    return (
        dict.fromkeys(per_query, (b, h, n))
        | dict.fromkeys(("top_keys", "top_weights"), (b, h, n, 3))
        | {f"{name}:{window}": (b, h, m) for name in PER_KEY for window in WINDOWS}
        | {"tile_mean": cells, "tile_max": cells, "distance_histogram": (b, h, 3)}
    )


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name].double(), atol=1e-6), name


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"wanted": ["entropy", "entropie"]}, "unknown statistic 'entropie'; there are lse, entropy, "),
        ({"wanted": ["received:early"]}, "unknown statistic 'received:early'"),
        ({"wanted": ["mass"]}, "the statistic 'mass' needs at least one span of keys"),
        ({"wanted": ["mass"], "spans": {}}, "the statistic 'mass' needs at least one span of keys"),
        ({"wanted": ["tile_mean"]}, "a tile statistic needs a tile"),
        ({"wanted": ["tile_max"]}, "a tile statistic needs a tile"),
        (
            {"wanted": ["tile_max"], "tile": Tile((0, 4), (0, 7))},
            "the tile's queries 0 to 4 are not inside the map's 0 to 3",
        ),
        (
            {"wanted": ["tile_max"], "tile": Tile((0, 3), (2, 8))},
            "the tile's keys 2 to 8 are not inside the map's 0 to 7",
        ),
        (
            {"wanted": ["tile_mean"], "tile": Tile((-1, 2), (0, 7))},
            "the tile's queries -1 to 2 are not inside the map's 0 to 3",
        ),
        (
            {"wanted": ["tile_mean"], "tile": Tile((2, 2), (0, 7))},
            "the tile's queries 2 to 2 are not inside the map's 0 to 3",
        ),
        ({"wanted": ["tile_mean"], "tile": Tile((0, 3), (0, 7), 0)}, "a tile needs at least 1 cell a side, not 0"),
        ({"wanted": ["top_keys"], "top": 0}, "top is 0, and at least 1 key must be asked for"),
        ({"wanted": ["clipped_distance"], "clip": 0}, "clip is 0, and a clipped distance needs at least 1 token"),
        ({"wanted": ["distance_histogram"], "edges": ()}, "the histogram's edges must rise from 0; these are ()"),
        ({"wanted": ["distance_histogram"], "edges": (1, 2)}, "must rise from 0; these are (1, 2)"),
        ({"wanted": ["distance_histogram"], "edges": (0, 2, 2)}, "must rise from 0; these are (0, 2, 2)"),
        ({"wanted": ["distance_histogram"], "edges": (0, 4, 2)}, "must rise from 0; these are (0, 4, 2)"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        statistics(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 7, 2), scale=1.0, **asked)
    assert "\n" not in str(refusal.value)


def test_what_is_not_asked_about_is_not_held_against_the_caller() -> None:
    # The default of `top` is more than these keys, and there is no tile.
    found = statistics(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), scale=1.0, wanted=["entropy"])
    assert list(found) == ["entropy"]


def test_asking_for_nothing_gives_nothing() -> None:
    assert statistics(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), scale=1.0, wanted=[]) == {}


def test_results_come_in_the_order_asked_and_once_each_the_ones_per_key_last(implementation: str, device: str) -> None:
    q, k, options = call(device=device)
    options["wanted"] = ["received", "top_key", "mass", "entropy", "received", "mean_query"]
    found = statistics(q, k, implementation=implementation, **options)
    assert list(found) == [
        "top_key", "mass:first", "mass:rest", "entropy",
        "received:early", "mean_query:early", "received:next", "mean_query:next",
    ]  # fmt: skip


def test_any_iterable_names_what_is_wanted() -> None:
    q, k, options = call()
    options |= {"wanted": (name for name in ("entropy", "distance_histogram")), "edges": iter((0, 2))}
    found = statistics(q, k, **options)
    assert found["distance_histogram"].shape == (2, 2, 2)


def answering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who answers from here on, in the order asked."""
    asked: list[str] = []
    for name in ("reference", "blocked"):
        module = __import__(f"kernels.statistics.{name}", fromlist=["statistics"])

        def answer(attention: Any, request: Any, name: str = name, own: Any = module.statistics) -> Any:
            asked.append(name)
            return own(attention, request)

        monkeypatch.setattr(module, "statistics", answer)
    return asked


def test_who_answers_is_chosen_unless_named_or_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch)
    q, k = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    statistics(q, k, scale=1.0, wanted=["lse"])
    statistics(q, k, scale=1.0, wanted=["lse"], implementation="reference")
    monkeypatch.setattr(operation, "FORCED", "reference")
    statistics(q, k, scale=1.0, wanted=["lse"])
    statistics(q, k, scale=1.0, wanted=["lse"], implementation="blocked")
    assert asked == ["blocked", "reference", "reference", "blocked"]


OF_ANY_MAP = ("entropy", "distance", "clipped_distance", "top_key", "top_weights", "mass", "self_mass", "participation",
              "distance_histogram", *PER_KEY)  # fmt: skip


def whole_map(sink: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Any], dict[str, Tensor]]:
    """A softmax's map, what it sees, options that both kinds of answer take, and the answer from q and k."""
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 12, 8)
    seen = visible_pairs(9, 12, causal=True)[None, None]
    first = (torch.arange(12) < 3).expand(2, 12)
    options: dict[str, Any] = {
        "wanted": OF_ANY_MAP,
        "spans": {"first": first},
        "windows": WINDOWS,
        "clip": 4,
        "top": 3,
        "query_positions": torch.arange(3, 12).expand(2, 9),
        "key_positions": torch.arange(12).expand(2, 12),
    }
    p = weights(q, k, scale=0.4, mask=seen, sink=sink)
    return p, seen, options, statistics(q, k, scale=0.4, sink=sink, **options)


@pytest.mark.parametrize("sink", [None, torch.tensor([-1.0, 0.0, 1.0, 2.0])])
def test_a_whole_map_has_the_statistics_of_the_softmax_that_made_it(sink: Tensor | None) -> None:
    p, seen, options, expected = whole_map(sink)
    found = map_statistics(p, seen, **options)
    assert list(found) == list(expected)
    for name, value in found.items():
        # What rounding leaves of a row that spends everything, some 1e-7, counts in the entropy as -x log x.
        assert torch.allclose(value.double(), expected[name].double(), atol=1e-5), name


def test_a_head_that_does_nothing_has_no_entropy_no_strongest_key_and_gives_no_key_anything() -> None:
    p, seen, options, _ = whole_map(None)
    found = map_statistics(torch.zeros_like(p), seen, **options)
    assert (found.pop("top_key") == -1).all()
    for name, value in found.items():
        assert (value == (-1 if name.startswith("mean_query") else 0)).all(), name


def test_a_map_that_is_no_softmax_has_no_log_sum_exp() -> None:
    p, seen, options, _ = whole_map(None)
    with pytest.raises(ValueError, match="the statistic 'lse' is that of a softmax, and these weights are none"):
        map_statistics(p, seen, **options | {"wanted": ["entropy", "lse"]})


def test_the_processor_is_answered_by_the_blocked_path() -> None:
    assert operation.choose(torch.zeros(1)) == "blocked"
    assert operation.choose(torch.zeros(1, dtype=torch.float64)) == "blocked"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fake_tensors_get_the_right_shapes_and_types(dtype: torch.dtype) -> None:
    q, k, options = call()
    q, k = q.to(dtype), k.to(dtype)
    with FakeTensorMode() as mode:
        faked = {name: mode.from_tensor(value) for name, value in options.items() if isinstance(value, Tensor)}
        faked["spans"] = {name: mode.from_tensor(value) for name, value in options["spans"].items()}
        found = statistics(mode.from_tensor(q), mode.from_tensor(k), **options | faked)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected_shapes(2, 2, 9, 12)
    for name, value in found.items():
        number = torch.float64 if dtype == torch.float64 else torch.float32
        assert value.dtype == (torch.int64 if name in ("top_key", "top_keys") else number), name


def test_real_tensors_get_the_shapes_types_and_strides_that_fake_ones_promise(implementation: str, device: str) -> None:
    q, k, options = call(device=device)
    found = statistics(q, k, implementation=implementation, **options)
    assert {name: tuple(value.shape) for name, value in found.items()} == expected_shapes(2, 2, 9, 12)
    for name, value in found.items():
        assert value.dtype == (torch.int64 if name in ("top_key", "top_keys") else torch.float32), name
        assert value.is_contiguous(), f"{name} is not contiguous: compiled code asserts the strides of the fake"


class Recorded(TorchDispatchMode):
    """The arguments with which our operation was called."""

    arguments: tuple[Any, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.headscope.statistics.default:
            self.arguments = args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("given_lse", [False, True])
@pytest.mark.parametrize("everything", [False, True])
def test_the_operation_is_what_its_schema_and_its_fake_say(
    everything: bool, given_lse: bool, implementation: str, device: str
) -> None:
    q, k, options = call(device=device)
    if not everything:
        options = {"scale": 0.4, "wanted": ["lse", "entropy", "top_weight", "received"]}
    if given_lse:
        only = options | {"wanted": ["lse"]}
        options["lse"] = statistics(q, k, implementation="reference", **only)["lse"]
    with Recorded() as seen:
        statistics(q, k, implementation=implementation, **options)
    torch.library.opcheck(
        torch.ops.headscope.statistics.default, seen.arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_no_result_is_the_log_sum_exp_that_was_given(implementation: str, device: str) -> None:
    q, k, options = call(device=device)
    lse = statistics(q, k, implementation="reference", **options | {"wanted": ["lse"]})["lse"]
    found = statistics(q, k, lse=lse, implementation=implementation, **options)
    assert torch.equal(found["lse"], lse)
    assert found["lse"].data_ptr() != lse.data_ptr()


@contextmanager
def compiling() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_function_keeps_the_operation_whole(implementation: str, device: str) -> None:
    def entropies(q: Tensor, k: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
        found = statistics(q * 2, k, implementation=implementation, **options)
        return found | {"certainty": -found["entropy"]}

    with compiling():
        compiled = torch.compile(entropies, fullgraph=True, backend="aot_eager")
        for n, m in ((9, 12), (7, 10)):  # the second are symbols to the compiler
            q, k, options = call(n, m, device)
            assert_equal(compiled(q, k, options), entropies(q, k, options))


def test_a_compiled_function_may_leave_every_option_out() -> None:
    def entropy(q: Tensor, k: Tensor) -> Tensor:
        return statistics(q, k, scale=0.5, wanted=["entropy"])["entropy"]

    q, k = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    with compiling():
        compiled = torch.compile(entropy, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(q, k), entropy(q, k))


def test_a_compiled_function_refuses_an_unknown_statistic_too() -> None:
    def entropy(q: Tensor) -> Tensor:
        return statistics(q, q, scale=0.5, wanted=["entropie"])["entropie"]

    with compiling(), pytest.raises(Exception, match="unknown statistic 'entropie'"):
        torch.compile(entropy, backend="eager")(torch.randn(1, 1, 3, 4))
