"""Heads go out and come back the same, and a file that holds something else is named with what is wrong in it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import retrieval
from analysis.head_lists import (
    HeadTable,
    Shape,
    as_matrix,
    check,
    duo_files,
    names_json,
    names_text,
    read_heads,
    read_streaming,
    reduce_to_groups,
    scores_json,
    spread_to_heads,
    whole_groups,
)
from probes.errors import HeadscopeError

SHAPE = Shape(layers=2, heads=6, kv_heads=3)


def groups(values: list[list[float]]) -> HeadTable:
    layer, group = np.indices(np.shape(values))
    return HeadTable(pd.DataFrame({"layer": layer.ravel(), "group": group.ravel(), "value": np.ravel(values)}))


def heads(**values: float) -> HeadTable:
    places = [tuple(map(int, name[1:].split("H"))) for name in values]
    layers, indices = zip(*places, strict=True)
    return HeadTable(pd.DataFrame({"layer": layers, "head": indices, "value": list(values.values())}))


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows(table: HeadTable) -> list[tuple[int, int, float]]:
    return [(int(a), int(b), float(c)) for a, b, c in table.frame[["layer", table.column, "value"]].to_numpy()]


ALPHA = groups([[0.1, 1.0, 0.25], [1 / 3, 0.0, 0.9]])
SCORES = heads(L1H4=0.9, L0H5=1 / 3, L0H0=0.0)


# There and back


def test_scores_come_back_to_the_last_bit_and_in_their_order(tmp_path: Path) -> None:
    back = read_heads(written(tmp_path, "scores.json", scores_json(SCORES)))
    assert back.kind == "query heads"
    assert rows(back) == rows(SCORES)


@pytest.mark.parametrize("table", [SCORES, ALPHA])
@pytest.mark.parametrize(("name", "write"), [("heads.json", names_json), ("heads.txt", names_text)])
def test_lists_of_heads_or_groups_come_back_with_their_kind(
    tmp_path: Path, table: HeadTable, name: str, write: Callable[[HeadTable], str]
) -> None:
    back = read_heads(written(tmp_path, name, write(table)))
    assert (back.kind, back.names()) == (table.kind, table.names())
    assert set(back.frame["value"]) == {1.0}


def test_a_duo_attention_pattern_comes_back_from_its_folder_or_its_file(tmp_path: Path) -> None:
    for name, text in duo_files(ALPHA, SHAPE, sink=4, window=64).items():
        written(tmp_path, name, text)
    for path in (tmp_path, tmp_path / "full_attention_heads.tsv"):
        back = read_heads(path)
        assert back.kind == "KV groups"
        assert rows(back) == rows(ALPHA)
    assert read_streaming(tmp_path) == (4, 64)


def test_the_authors_loader_reads_the_pattern_that_we_write(tmp_path: Path) -> None:
    # Theirs is np.loadtxt with tabs, then two keys of config.json.
    files = duo_files(ALPHA, SHAPE, sink=4, window=64)
    table = np.loadtxt(written(tmp_path, "full_attention_heads.tsv", files["full_attention_heads.tsv"]), delimiter="\t")
    assert np.array_equal(table, as_matrix(ALPHA, SHAPE))
    assert json.loads(files["config.json"]) == {"sink_size": 4, "recent_size": 64}


def test_the_scores_file_of_a_retrieval_run_is_read_as_means(tmp_path: Path) -> None:
    records = [{"passed": True, "scores": {"1-2": 1.0}}, {"passed": True, "scores": {"1-2": 0.5, "0-0": 0.2}}]
    raw = retrieval.raw_scores(records, 2, 3)
    back = read_heads(written(tmp_path, "head_scores.json", json.dumps(raw)))
    assert as_matrix(back, Shape(2, 3, 3)).tolist() == [[0.1, 0, 0], [0, 0, 0.75]]


# What others write


def test_one_number_for_a_head_is_a_score_too(tmp_path: Path) -> None:
    assert rows(read_heads(written(tmp_path, "scores.json", '{"17-4": 0.5, "L2H1": [0.25, 0.75]}'))) == [
        (17, 4, 0.5),
        (2, 1, 0.5),
    ]


@pytest.mark.parametrize("text", ["L17H4,L2H1", "17-4 2-1\n", "l17h4\n\n  L2H1", "17-4,\n2-1,"])
def test_names_stand_between_commas_spaces_or_lines(tmp_path: Path, text: str) -> None:
    assert read_heads(written(tmp_path, "heads.txt", text)).names() == ["L17H4", "L2H1"]


def test_alphas_that_training_left_a_little_outside_are_clipped_as_the_authors_do(tmp_path: Path) -> None:
    path = written(tmp_path, "full_attention_heads.tsv", "-9.58e-05\t1.0002\n5.5e-01\t1.0e+00\n")
    assert rows(read_heads(path)) == [(0, 0, 0.0), (0, 1, 1.0), (1, 0, 0.55), (1, 1, 1.0)]


# Files that hold something else


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "3", "neither scores"),
        ("a.json", "{}", "names no head"),
        ("a.json", "[]", "names no head"),
        ("a.txt", " \n", "names no head"),
        ("a.json", '{"17-4": []}', "17-4 takes a number or a list of them, and at least one"),
        ("a.json", '{"17-4": [[1, 2]]}', "17-4 takes a number or a list"),
        ("a.json", '{"17-4": [NaN]}', "all finite"),
        ("a.json", '{"17-4": null}', "all finite"),
        ("a.json", '{"17-4": "high"}', "the scores of 17-4 are not numbers"),
        ("a.json", '{"17-4": [1, [2]]}', "the scores of 17-4 are not numbers"),
        ("a.json", '["L1H2", "nine"]', "'nine' is not the name of a head"),
        ("a.json", "[[17, 4]]", "is not the name of a head"),
        ("a.txt", "L1H2 L1G2", "names both query heads"),
        ("a.txt", "L1H2, L3H4, 1-2", "names L1H2 twice"),
        ("a.txt", "vision.L1H2", "a tower beside the decoder"),
        ("a.tsv", "", "a row for each layer"),
        ("a.tsv", "1\t0\n1\n", "all rows are equally long"),
        ("a.tsv", "1\tx\n", "could not convert string to float: 'x'"),
        ("a.tsv", "0\t3\n", "alpha lies in \\[0, 1\\], and here it reaches 0 to 3"),
        ("a.tsv", "0\tnan\n", "alpha lies in"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(HeadscopeError, match=words) as caught:
        read_heads(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_without_a_pattern_and_a_picture_are_named(tmp_path: Path) -> None:
    picture = tmp_path / "heads.txt"
    picture.write_bytes(b"\x89PNG\xff")
    for path, words in [
        (tmp_path / "none.json", "none.json can't be read: No such file"),
        (tmp_path, "full_attention_heads.tsv can't be read: No such file"),
        (picture, "heads.txt can't be read: it is not text"),
    ]:
        with pytest.raises(HeadscopeError, match=words):
            read_heads(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"sink_size": 4}', '{"sink_size": 4, "recent_size": null}'])
def test_a_pattern_that_does_not_say_its_window_is_named(tmp_path: Path, text: str) -> None:
    written(tmp_path, "config.json", text)
    with pytest.raises(HeadscopeError, match=r"config\.json must give sink_size and recent_size"):
        read_streaming(tmp_path)


# Heads, groups and the model


def test_the_heads_of_a_group_get_its_value_and_a_group_the_largest_of_its_heads() -> None:
    spread = spread_to_heads(ALPHA, SHAPE)
    assert as_matrix(spread, SHAPE).tolist() == np.repeat(as_matrix(ALPHA, SHAPE), 2, axis=1).tolist()
    assert rows(reduce_to_groups(spread, SHAPE)) == rows(ALPHA)
    assert rows(reduce_to_groups(heads(L0H2=0.2, L1H0=0.5, L0H3=0.7), SHAPE)) == [(0, 1, 0.7), (1, 0, 0.5)]


def test_what_is_already_of_that_kind_stays() -> None:
    assert spread_to_heads(SCORES, SHAPE) is SCORES
    assert reduce_to_groups(ALPHA, SHAPE) is ALPHA


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (heads(L0H0=1, L2H0=1), "L2H0 does not exist: this model has layers 0 to 1 and query heads 0 to 5"),
        (heads(L0H6=1), "L0H6 does not exist"),
        (groups([[0, 0, 0, 1]]), "L0G3 does not exist: this model has layers 0 to 1 and KV groups 0 to 2"),
    ],
)
def test_heads_of_another_model_are_refused(table: HeadTable, words: str) -> None:
    for use in (check, as_matrix, spread_to_heads, reduce_to_groups):
        with pytest.raises(HeadscopeError, match=words):
            use(table, SHAPE)


def test_a_pattern_of_a_model_with_fewer_layers_is_refused_where_every_group_counts() -> None:
    with pytest.raises(HeadscopeError, match="3 of this model's 6 KV groups have no value"):
        whole_groups(groups([[0.1, 0.2, 0.3]]), SHAPE, 0.5)


def test_groups_have_no_place_in_a_score_file_nor_large_scores_in_a_pattern() -> None:
    with pytest.raises(HeadscopeError, match="spread the values"):
        scores_json(ALPHA)
    with pytest.raises(HeadscopeError, match="it reaches 0 to 2"):
        duo_files(groups([[0, 1, 2], [0, 0, 0]]), SHAPE, sink=4, window=64)


# Deploying


def test_the_lowest_share_of_the_alphas_streams() -> None:
    assert whole_groups(ALPHA, SHAPE, 0.5).tolist() == [[False, True, False], [True, False, True]]


def test_query_heads_are_deployed_by_their_strongest() -> None:
    scores = spread_to_heads(ALPHA, SHAPE)
    assert np.array_equal(whole_groups(scores, SHAPE, 0.5), whole_groups(ALPHA, SHAPE, 0.5))


@given(
    alpha=st.lists(st.floats(0, 1), min_size=6, max_size=6, unique_by=lambda x: round(x, 4)),
    percent=st.integers(0, 99),
)
def test_without_ties_the_whole_groups_are_those_at_or_above_the_quantile(alpha: list[float], percent: int) -> None:
    matrix = np.array(alpha).reshape(2, 3)
    found = whole_groups(groups(matrix.tolist()), SHAPE, percent / 100)
    assert np.array_equal(found, matrix >= np.quantile(matrix, percent / 100))


@pytest.mark.parametrize(("sparsity", "whole"), [(0.0, 6), (0.2, 5), (0.5, 3), (1.0, 0)])
def test_ties_stream_as_many_groups_as_asked_for_and_no_more(sparsity: float, whole: int) -> None:
    assert whole_groups(groups([[1, 1, 1], [1, 1, 1]]), SHAPE, sparsity).sum() == whole


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(HeadscopeError, match=r"and 1.5 does not"):
        whole_groups(ALPHA, SHAPE, 1.5)
