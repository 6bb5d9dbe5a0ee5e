"""What the Bench form makes of heads, operations and tasks, without a screen and without a model."""

from dataclasses import replace
from inspect import signature

import pytest

from analysis.bench import obstacles, tasks
from analysis.bench.kinds import AS_WRITTEN, LEFT_OUT, kind_of, kinds, values_of
from analysis.bench.model_size import ModelSize, model_size
from analysis.bench.parts import Parts, named, parts_of, read_operation
from analysis.bench.question import Question, asked_by
from analysis.cli_interventions import intervene
from analysis.interventions import parse
from analysis.jobs.line import parse as read_line
from kernels.mechanisms import mechanisms
from probes.errors import HeadscopeError

SIZE = ModelSize(layers=6, query_heads=4, kv_heads=2)


@pytest.mark.parametrize("name", kinds())
def test_every_operation_offered_is_written_as_text_that_reads_back_to_the_same_fields(name: str) -> None:
    made = kinds()[name].default
    assert read_operation(str(made)) == made
    assert kind_of(made) == name
    assert values_of(made) == {field.name: field.default for field in kinds()[name].fields}
    assert kinds()[name].does
    assert kinds()[name].when


def test_every_rule_is_offered_or_left_out_with_a_reason() -> None:
    rules = {f"swap({found.name})" for found in mechanisms()}
    assert rules - set(kinds()) == rules & set(LEFT_OUT)


@pytest.mark.parametrize(
    "text", ["redistribute(0:1, image, 0.6)", "overwrite(3, 0, 100)", "swap(output_gate, gate=0.2)"]
)
def test_an_operation_that_no_form_offers_is_kept_as_it_was_written(text: str) -> None:
    assert kind_of(read_operation(text)) == AS_WRITTEN


def test_a_weight_of_nothing_is_a_knock_out_and_a_plain_one_is_not() -> None:
    assert kind_of(read_operation("weight(needle, 0)")) == "knock_out"
    assert kind_of(read_operation("weight(needle, 0, plain)")) == "weight"


def test_an_intervention_is_taken_apart_and_put_together_again() -> None:
    text = "move(0:1, needle, 0.5) @ top(retrieval_score, 10) on last in decode; scale(0.5) @ L3"
    parts = parts_of(text)
    assert parts == Parts(
        "top(retrieval_score, 10)", "move(0:1, needle, 0.5)", "last", "decode", more="scale(0.5) @ L3"
    )
    assert parts.text == text
    assert (
        replace(parts, queries="all", phase="both", more="").text == "move(0:1, needle, 0.5) @ top(retrieval_score, 10)"
    )


@pytest.mark.parametrize(
    ("typed", "selector"),
    [
        ("L3H1 L4H2", "L3H1, L4H2"),
        (" L3H1,L4H2, ", "L3H1, L4H2"),
        ("L3H1;\nL4H2", "L3H1, L4H2"),
        ("top(retrieval_score, 10)", "top(retrieval_score, 10)"),
        ("L1, top(locos, 5%)", "L1, top(locos, 5%)"),
        ("", ""),
    ],
)
def test_heads_may_be_typed_with_spaces_or_commas_between_them(typed: str, selector: str) -> None:
    assert named(typed) == selector


def test_heads_are_checked_against_the_size_of_the_model() -> None:
    chosen = obstacles.chosen_heads(parse("scale(2) @ L1G1, L5; scale(3) @ L1H2"), SIZE, None, seed=0)
    assert list(map(str, chosen)) == ["L1H2", "L1H3", "L5H0", "L5H1", "L5H2", "L5H3"]
    for text, said in (
        ("scale(2) @ L6H0", "layers 0 to 5"),
        ("scale(2) @ L1G2", "KV groups 0 to 1"),
        ("scale(2) @ not(all)", "selects none"),
        ("scale(2) @ vision.L1H0", "tower"),
    ):
        with pytest.raises(HeadscopeError, match=said):
            obstacles.chosen_heads(parse(text), SIZE, None, seed=0)


def test_a_run_of_no_one_model_has_no_size() -> None:
    assert model_size({"model": {"layers": 6, "heads": 4}}) == ModelSize(6, 4, 4)
    for model in ({}, {"layers": 6}, {"layers": "many", "heads": 4}, {"layers": 0, "heads": 4}):
        with pytest.raises(HeadscopeError, match="how many heads"):
            model_size({"model": model})


def test_a_span_that_a_task_lacks_is_named_with_what_the_task_has() -> None:
    asked = tasks.chosen("needle, tracking(chains=2), perplexity")
    [one, two] = obstacles.missing_spans(parse("weight(needle+0:4, 2) @ L1 on generated"), asked)
    assert one.startswith("tracking(chains=2) has no span needle: it has chain, other, question.")
    assert two.startswith("perplexity has no span needle: it has none.")
    assert not obstacles.missing_spans(parse("move(0:1, -8:, 0.5) @ L1 on last"), asked)
    assert len(obstacles.missing_spans(parse("boost(0:4, 2) @ L1 on chain"), asked)) == 2


def test_spans_that_only_some_tasks_have_are_told_from_those_that_all_have() -> None:
    shared, lacking = obstacles.shared_spans(tasks.chosen("needle, facts"))
    assert shared == ["question"]
    assert lacking == {"needle": ["facts"], "answer": ["facts"]}


def test_what_acts_in_decoding_alone_asks_nothing_of_a_task_that_decodes_nothing() -> None:
    asked = tasks.chosen("facts, copying")
    [said] = obstacles.read_in_one_prefill(parse("query_zero @ L1 in decode"), asked)
    assert said.startswith("copying reads one prefill")
    assert not obstacles.read_in_one_prefill(parse("query_zero @ L1 in decode; scale(2) @ L2"), asked)


def test_controls_need_as_many_other_heads() -> None:
    def why(text: str) -> str:
        asked = parse(text)
        return obstacles.without_controls(asked, obstacles.chosen_heads(asked, SIZE, None, seed=0), SIZE)

    assert why("scale(2) @ L0-2") == ""
    assert "Only 8 heads are left" in why("scale(2) @ L0-3")
    assert "whole layers" in why("overwrite(1, 0, 0) @ L1")


def test_the_line_of_a_question_is_one_that_the_command_line_takes() -> None:
    question = Question("scale(2) @ L1", "a model", "needle(lengths=256), facts", 8, 1, 3, "some-run")
    assert read_line(question.arguments).verb == "intervene"
    assert question.line == (
        "headscope intervene 'scale(2) @ L1' --task 'needle(lengths=256), facts' --model 'a model' --count 8 "
        "--controls 1 --seed 3 --heads-from some-run"
    )
    assert Question("scale(2) @ L1", "m").line == "headscope intervene 'scale(2) @ L1' --task needle --model m"


def test_what_is_left_unsaid_is_what_the_command_line_takes_for_it() -> None:
    usual = {name: parameter.default for name, parameter in signature(intervene).parameters.items()}
    asked = Question("scale(2) @ L1", "m")
    assert (asked.tasks, asked.count, asked.controls, asked.seed) == (
        usual["task"], usual["count"], usual["controls"], usual["seed"],
    )  # fmt: skip


def test_a_runs_question_is_asked_again_with_its_metric_where_the_ranking_is_still_there() -> None:
    request = {"template": "query_zero @ top(locos, 1)", "over": {}, "tasks": "facts", "count": 4, "controls": 1,
               "heads_from": "ranked", "seed": 2}  # fmt: skip
    point = {"name": "treated", "intervention": "query_zero @ L3H1"}
    again = asked_by(request, point, ["ranked"], "m")
    assert again == Question("query_zero @ top(locos, 1)", "m", "facts", 4, 1, 2, "ranked")
    assert asked_by(request, point, [], "m") == replace(again, intervention="query_zero @ L3H1", heads_from="")
    swept = request | {"template": "query_zero @ L{l}", "over": {"l": ["3"]}}
    assert asked_by(swept, point | {"name": "l=3"}, ["ranked"], "m").intervention == "query_zero @ L3H1"
    evicted = {"template": "evict", "over": {}, "tasks": "perplexity", "count": 4, "controls": 0, "heads_from": None}
    again = asked_by(evicted, {"name": "way=window", "intervention": "stream(0, 32) @ all"}, [], "m")
    assert again == Question("stream(0, 32) @ all", "m", "perplexity", 4, 0)
