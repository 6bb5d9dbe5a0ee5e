"""What a mitigation is: from a batch of prompts to a Plan, a Contrast, or both; and its text, which reads back.

A Preset is a frozen dataclass whose fields are the settings: `vhr(alpha=1.2, heads=random)` is Vhr(1.2, "random").
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Protocol, Self

from analysis.operations import finite, short
from probes.contrast import Contrast
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt
from probes.plan import Plan
from probes.subject import Subject

NOT_WRITTEN = {"written": False}
"""Metadata of a field that the text leaves out: arrays that the caller gives."""
_TRUTH = {"yes": True, "no": False, "true": True, "false": False}


@dataclass(frozen=True)
class Prepared:
    """What decodes a batch of prompts under a mitigation, for probes.generation.generate."""

    plan: Plan | None = None
    contrast: Contrast | None = None


class Mitigation(Protocol):
    """name: its text. control: the same with heads drawn at random, None where it treats all heads alike."""

    @property
    def name(self) -> str: ...

    @property
    def control(self) -> "Mitigation | None": ...

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        """A plan of one row for each prompt, on the subject's device. seed: of whatever is drawn."""
        ...


@dataclass(frozen=True)
class Preset(ABC):
    """leading: how many of the first fields the text always gives, without their names."""

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    line: ClassVar[str] = ""
    leading: ClassVar[int] = 0

    @property
    def name(self) -> str:
        parts = []
        for i, each in enumerate(_written(self)):
            value = getattr(self, each.name)
            if i < self.leading:
                parts.append(_text(value))
            elif value != each.default:
                parts.append(f"{each.name}={_text(value)}")
        return f"{self.title}({', '.join(parts)})" if parts else self.title

    @property
    def control(self) -> "Mitigation | None":
        return None

    @abstractmethod
    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared: ...

    @classmethod
    def read(cls, given: Sequence[str], **more: Any) -> Self:
        """From the arguments of its text, in order or by name. Raises HeadscopeError naming the one that is wrong."""
        known = {each.name: each for each in _written(cls)}
        taken: dict[str, Any] = {}
        for place, argument in enumerate(given):
            key, equals, value = (part.strip() for part in argument.partition("="))
            if not equals:
                key, value = (list(known)[place] if place < len(known) else argument, key)
            if key not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise HeadscopeError(f"{cls.title} has no setting {key!r}: {has}.")
            if key in taken:
                raise HeadscopeError(f"{key}: {cls.title} takes it once.")
            taken[key] = _value(key, value, known[key].default)
        return cls(**taken, **more)


def _written(preset: Preset | type[Preset]) -> list[Field[Any]]:
    return [each for each in fields(preset) if each.metadata.get("written", True)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short(value) if isinstance(value, float) else str(value)


def _value(name: str, text: str, default: Any) -> Any:
    """The text as the type that the default has."""
    try:
        if isinstance(default, bool):
            return _TRUTH[text.lower()]
        if isinstance(default, int):
            return int(text)
        return finite(name, float(text)) if isinstance(default, float) else text
    except KeyError:
        raise HeadscopeError(f"{name}: {text!r} is neither yes nor no.") from None
    except ValueError:
        raise HeadscopeError(
            f"{name}: {text!r} is no {'number' if isinstance(default, float) else 'whole number'}."
        ) from None
