"""A Prompt: token ids with named spans, found once from character offsets while the prompt is built.

prompt = chat_prompt(subject, [Part("Paris is the capital of France.", "needle"), Part("\n\nWhat is it?")])
prompt.spans["needle"]      # positions of the tokens that hold those characters
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from probes.errors import HeadscopeError
from probes.subject import Subject

# Stands for the message while the chat template is rendered; from Unicode's private use area, so no text holds it.
_MARK = "\ue000headscope\ue001"


@dataclass(frozen=True)
class Part:
    """A stretch of text, with the name of its span if it has one."""

    text: str
    span: str | None = None


@dataclass(frozen=True)
class Prompt:
    """ids (n,), the rendered text, the character range of each token, and spans: name to sorted positions."""

    ids: Int[Tensor, " n"]
    text: str
    offsets: tuple[tuple[int, int], ...]
    spans: Mapping[str, tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.offsets)

    def token_text(self, position: int) -> str:
        """The characters that one token covers."""
        start, stop = self.offsets[position]
        return self.text[start:stop]

    def positions(self, start: int, stop: int) -> tuple[int, ...]:
        """Tokens that hold any of the characters start to stop, a token split across the edge included."""
        return tuple(i for i, (a, b) in enumerate(self.offsets) if a < stop and b > start)


def chat_frame(subject: Subject) -> tuple[str, str]:
    """What the model's own chat template puts before and after a user's message; two empty texts without one."""
    if not getattr(subject.tokenizer, "chat_template", None):
        return "", ""
    rendered = subject.tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
    )
    before, mark, after = rendered.partition(_MARK)
    if not mark or _MARK in after:
        raise HeadscopeError(f"The chat template of {subject.name} does not show the user's message exactly once.")
    return before, after


def chat_prompt(subject: Subject, parts: Sequence[Part], *, answer_start: str = "") -> Prompt:
    """The parts as one user message through the model's chat template, spans found from their characters.

    Raises HeadscopeError for a tokenizer without character offsets, for an empty message, and where a span's text
    has no token.
    """
    if not "".join(part.text for part in parts).strip():
        raise HeadscopeError("The prompt is empty: give it some text.")
    before, after = chat_frame(subject)
    text, ranges = before, {}
    for part in parts:
        if part.span is not None:
            ranges[part.span] = (len(text), len(text) + len(part.text))
        text += part.text
    return encode(subject, text + after + answer_start, ranges, special_tokens=not before)


def encode(
    subject: Subject, text: str, ranges: Mapping[str, tuple[int, int]], *, special_tokens: bool = True
) -> Prompt:
    """Tokenise a text and turn character ranges into spans of positions."""
    if not getattr(subject.tokenizer, "is_fast", False):
        raise HeadscopeError(
            f"The tokenizer of {subject.name} gives no character offsets, which spans are found from: "
            "use its fast version (tokenizer.json)."
        )
    encoded = subject.tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
    offsets = tuple((int(a), int(b)) for a, b in encoded["offset_mapping"])
    prompt = Prompt(torch.tensor(encoded["input_ids"], dtype=torch.long), text, offsets, {})
    spans = {}
    for name, (start, stop) in ranges.items():
        spans[name] = prompt.positions(start, stop)
        if not spans[name]:
            raise HeadscopeError(f"No token of the prompt holds the span {name!r}: it was cut off or is empty.")
    return Prompt(prompt.ids, text, offsets, spans)
