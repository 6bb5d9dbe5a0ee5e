"""Spans are found from characters, whatever the tokenizer does to them."""

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.prompt import Part, chat_prompt, encode
from probes.subject import Subject

TEMPLATE = (
    "{% for message in messages %}<u>{{ message['content'] }}</u>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


def in_threes(template: str | None = TEMPLATE) -> Any:
    """A subject whose tokenizer cuts text every three characters, words or not."""
    vocabulary = {"[unknown]": 0}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[unknown]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]{1,3}"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[unknown]")
    tokenizer.chat_template = template
    return SimpleNamespace(name="threes", tokenizer=tokenizer)


def test_a_needle_split_across_two_tokens_by_the_tokenizer_is_still_found() -> None:
    prompt = encode(in_threes(), "abcdefghi", {"needle": (2, 4)})
    assert prompt.spans["needle"] == (0, 1)
    assert [prompt.token_text(i) for i in prompt.spans["needle"]] == ["abc", "def"]


def test_a_span_that_ends_on_a_tokens_edge_takes_no_neighbour() -> None:
    assert encode(in_threes(), "abcdefghi", {"needle": (3, 6)}).spans["needle"] == (1,)


def test_a_span_inside_the_chat_template_holds_exactly_its_characters() -> None:
    prompt = chat_prompt(in_threes(), [Part("Hay. "), Part("Needle!", "needle"), Part(" What?", "question")])
    assert prompt.text == "<u>Hay. Needle! What?</u><a>"
    assert prompt.spans["needle"] == (2, 3, 4)
    assert prompt.spans["question"] == (5, 6)


def test_the_same_words_elsewhere_in_the_prompt_are_not_the_span() -> None:
    prompt = chat_prompt(in_threes(None), [Part("abc"), Part("abc", "needle"), Part("abc")])
    assert prompt.spans["needle"] == (1,)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="prompt is empty"):
        chat_prompt(in_threes(), [Part("  ")])


def test_a_span_without_a_token_is_refused_by_name() -> None:
    with pytest.raises(HeadscopeError, match="the span 'needle'"):
        chat_prompt(in_threes(), [Part("abc"), Part("", "needle")])


def test_a_template_that_hides_the_message_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="exactly once"):
        chat_prompt(in_threes("hello"), [Part("abc")])


def test_a_tokenizer_without_offsets_is_refused() -> None:
    subject: Any = SimpleNamespace(name="slow", tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(HeadscopeError, match="character offsets"):
        encode(subject, "abc", {})


def test_a_prompt_beyond_the_models_positions_is_refused() -> None:
    subject: Any = SimpleNamespace(name="short", anatomy=SimpleNamespace(context=100))
    check_length(subject, 90, 10)
    with pytest.raises(HeadscopeError, match="at most 90 tokens"):
        check_length(subject, 91, 10)


@pytest.mark.model
def test_the_default_models_chat_template_keeps_the_span(smollm: Subject) -> None:
    needle = "The déjà-vu café 🦜 opens at noon."
    prompt = chat_prompt(smollm, [Part("Much hay. "), Part(needle, "needle"), Part("\n\nWhen?")])
    places = prompt.spans["needle"]
    assert places == tuple(range(places[0], places[-1] + 1))
    covered = prompt.text[prompt.offsets[places[0]][0] : prompt.offsets[places[-1]][1]]
    assert covered.strip() == needle
    assert smollm.tokenizer.decode(prompt.ids[list(places)]).strip() == needle
