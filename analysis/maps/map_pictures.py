"""A picture whose attention is mapped, with a question: one's own file, or a scene that ships.

picture = chosen_picture(subject, ShownPicture(image=Path("cat.png")), text)      # None for a text alone
prompt = picture_prompt(subject, picture, text)
"""

from dataclasses import dataclass
from pathlib import Path

from analysis.maps.map_prompts import Text, own_text
from analysis.vision import drawing
from analysis.vision.pictures import Picture
from analysis.vision.scenes import FIRST_SCENE, scene_called
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, image_prompt
from probes.images import open_image
from probes.subject import Subject

QUESTION = "Describe the image in detail."
NEW_TOKENS = 60  # of the answer to a question about a picture, unless told otherwise


@dataclass(frozen=True)
class ShownPicture:
    """image: a file; scene: the id of an emoji-scene. Neither: a scene, for a model that sees and is given no text."""

    image: Path | None = None
    scene: str | None = None


def chosen_picture(subject: Subject, shown: ShownPicture, text: Text) -> Picture | None:
    """Raises HeadscopeError for a file that is no image, a scene there is not, and a model that reads text alone."""
    if shown.image is not None and shown.scene is not None:
        raise HeadscopeError("Both --image and --scene are given: choose one.")
    named = shown.image is not None or shown.scene is not None
    sees = subject.processor is not None
    if named and not sees:
        raise HeadscopeError(
            f"{subject.name} reads text alone: a picture needs a model that sees, such as emoji-llava."
        )
    if named and text.tokens is not None:
        raise HeadscopeError("A prompt with a picture is kept whole: leave --tokens out.")
    if shown.image is not None:
        image = open_image(shown.image)
        return Picture(shown.image.name, (), None, (), lambda: image)
    if shown.scene is not None or (sees and text == Text()):
        [picture] = drawing.pictures([scene_called(shown.scene or FIRST_SCENE)])
        return picture
    return None


def picture_prompt(subject: Subject, picture: Picture, text: Text) -> ImagePrompt:
    """The picture with the question that the text is, or with a request to describe it."""
    return image_prompt(subject, picture.read(), own_text(text) if text.own else QUESTION)
