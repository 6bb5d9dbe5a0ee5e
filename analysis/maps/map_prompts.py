"""The text whose attention is mapped: one's own, bare or in the model's chat template, or a piece of a haystack."""

from dataclasses import dataclass
from pathlib import Path

from analysis.needles import haystack
from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt, chat_frame, chat_prompt, encode
from probes.subject import Subject

HAYSTACK = "kjv"
TOKENS = 1024  # of the haystack, unless told otherwise
CHARACTERS = 8  # a token of prose rarely covers as many


@dataclass(frozen=True)
class Text:
    """prompt or file: one's own text; neither: a piece of the haystack. chat: as a user's message.

    tokens: what the prompt is cut to, the template's own included.
    """

    prompt: str | None = None
    file: Path | None = None
    chat: bool = False
    tokens: int | None = None

    @property
    def own(self) -> bool:
        return self.prompt is not None or self.file is not None


def prompt_of(subject: Subject, asked: Text) -> Prompt:
    """The prompt, with the span `message` inside a chat template.

    Raises HeadscopeError for a text that can't be read, a prompt beyond the model's window, and one without a map.
    """
    most = asked.tokens or (None if asked.own else TOKENS)
    text = own_text(asked) if asked.own else haystack(HAYSTACK)[: CHARACTERS * (most or TOKENS)]
    if not text.strip():
        raise HeadscopeError("The prompt is empty: give it some text.")
    prompt = _as_message(subject, text, most) if asked.chat else _bare(subject, text, most)
    limit = subject.anatomy.context
    if limit and len(prompt) > limit:
        raise HeadscopeError(
            f"The prompt has {len(prompt)} tokens and {subject.name} reads {limit}: cut it with --tokens {limit}."
        )
    if len(prompt) < 2:
        raise HeadscopeError("The prompt has fewer than two tokens, and so no map: give it more text.")
    if not asked.own and not asked.chat and len(prompt) < (most or TOKENS):
        raise HeadscopeError(
            f"The text that ships has fewer than {most} tokens of {subject.name}: give your own with --file."
        )
    return prompt


def own_text(asked: Text) -> str:
    """What was given. Raises HeadscopeError for a file that can't be read, and for a text beside one."""
    if asked.prompt is not None and asked.file is not None:
        raise HeadscopeError("Both --prompt and --file are given: choose one.")
    if asked.file is None:
        return asked.prompt or ""
    try:
        return asked.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise HeadscopeError(f"{asked.file} is not a readable UTF-8 text file.") from None


def _bare(subject: Subject, text: str, most: int | None) -> Prompt:
    prompt = encode(subject, text, {})
    if most is None or len(prompt) <= most:
        return prompt
    end = max(stop for _, stop in prompt.offsets[:most])
    return Prompt(prompt.ids[:most], prompt.text[:end], prompt.offsets[:most], {})


def _as_message(subject: Subject, text: str, most: int | None) -> Prompt:
    before, _ = chat_frame(subject)
    if not before:
        raise HeadscopeError(f"{subject.name} has no chat template: leave --chat out.")
    prompt = chat_prompt(subject, [Part(text, "message")])
    while most is not None and len(prompt) > most:  # the joint with the template may cost another token
        message, beyond = prompt.spans["message"], len(prompt) - most
        if beyond >= len(message):
            raise HeadscopeError(
                f"--tokens {most} leaves no room for a message: the chat template alone takes "
                f"{len(prompt) - len(message)} tokens."
            )
        text = text[: prompt.offsets[message[-beyond]][0] - len(before)]
        if not text.strip():
            raise HeadscopeError(f"--tokens {most} leaves no room for the message: choose more.")
        prompt = chat_prompt(subject, [Part(text, "message")])
    return prompt
