"""A form for a prompt of the reader's own: a job makes its map, while the page stays as it is."""

import streamlit as st

from analysis.jobs.uploads import LARGEST_PICTURE, PICTURES, keep_picture, keep_text
from probes.errors import HeadscopeError
from views import next_steps, reading
from views.job_card import submit_button
from views.run_words import plain

KEY = "new-map"
LONGEST = 100_000  # characters
DEFAULT = "smollm2-135m"


def form() -> None:
    """Closed at first. What is written stays in this session; only the finished run has an address."""
    with st.expander("Map a prompt or a picture of your own", icon=":material/add:"):
        text = st.text_area(
            "Prompt", key=f"{KEY}-text", max_chars=LONGEST, help="Longer texts: `headscope map --file`."
        ).strip()
        picture = st.file_uploader(
            "Picture, for a model that sees", type=[suffix[1:] for suffix in PICTURES.values()], key=f"{KEY}-picture",
            max_upload_size=LARGEST_PICTURE // 1_000_000,
        )  # fmt: skip
        model, layers, chat = st.columns([2, 1, 1], vertical_alignment="bottom")
        name = model.text_input("Model", value=_usual_model(), key=f"{KEY}-model").strip()
        kept = layers.text_input("Layers", value="all", key=f"{KEY}-layers", help="all, or numbers such as 12,15,18")
        as_chat = chat.checkbox("As a chat message", key=f"{KEY}-chat", disabled=picture is not None)
        st.caption("A job makes the map, and you can go on reading. Fewer layers take less time and less of the disk.")
        if not text and picture is None:
            st.button("Make the map", icon=":material/play_arrow:", disabled=True, help="Write a prompt first.")
            return
        try:
            content = picture.getvalue() if picture is not None else None
            line = _line(text, content, model=name, layers=kept.strip(), chat=as_chat and picture is None)
        except HeadscopeError as error:
            st.error(plain(str(error)))
            return
        submit_button("Make the map", line, key=KEY)


def _usual_model() -> str:
    """That of the newest run in the folder."""
    found = reading.runs()[0]
    return next_steps.asked_model(found[0]) if found and not reading.is_example(found[0]) else DEFAULT


def _line(text: str, picture: bytes | None, *, model: str, layers: str, chat: bool) -> list[str]:
    """The command line of the job, which reads the text and the picture from files that are kept beside the jobs."""
    out = reading.runs_folder().absolute()
    line = ["map", "--model", model, "--layers", layers]
    if picture is not None:
        line += ["--image", str(keep_picture(picture, out))]
    if text:
        line += ["--file", str(keep_text(text, out))]
    return [*line, "--chat"] if chat else line
