"""The dashboard's front door: navigation only. Every page that stands in `views` is found by itself.

streamlit run app.py

The runs it shows lie in `runs`, or in the folder that the environment variable HEADSCOPE_RUNS names.
"""

from typing import Any

import streamlit as st

# Streamlit leaves six lines free above a page.
CLOSER = "<style>[data-testid=stMainBlockContainer] {padding-top: 3.5rem}</style>"


def navigate() -> None:
    """What Streamlit runs for each reader, from the top, after every click."""
    from probes.errors import HeadscopeError
    from views import reading, unforeseen
    from views.address import choose_run
    from views.jobs_line import jobs_line
    from views.pages import SECTIONS, pages
    from views.run_words import plain
    from views.save_button import save_button

    st.set_page_config(page_title="headscope", page_icon="🧠", layout="wide")
    st.html(CLOSER)
    navigation: dict[str, list[Any]] = {section: [] for section in SECTIONS}
    for name, page in pages().items():
        # The default page answers at the bare address only; a second one lets /home be typed and linked.
        first = name == "home"
        path = "start" if first else name
        navigation[page.section].append(
            st.Page(f"views/{name}.py", title=page.title, icon=page.icon, url_path=path, default=first)
        )
    navigation[""].append(st.Page("views/home.py", title="Home", url_path="home", visibility="hidden"))
    chosen = st.navigation(navigation, expanded=True)
    try:
        with reading.one_look():
            choose_run()
            jobs_line()
            chosen.run()
            save_button(chosen.url_path)
    except HeadscopeError as error:
        st.error(plain(str(error)))
    except unforeseen.DAMAGE as error:
        st.error(unforeseen.sentence(error))


if __name__ == "__main__":
    navigate()
else:  # the server imports this file once, before there is a reader
    from starlette.middleware import Middleware

    from views import front
    from views.packed import Packed

    around = [Middleware(Packed)]
    server = st.App(__file__, routes=front.routes(), middleware=around, lifespan=front.starting)
