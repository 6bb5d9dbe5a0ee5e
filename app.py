"""The dashboard's front door: navigation only.

streamlit run app.py

The runs it shows lie in `runs`, or in the folder that the environment variable HEADSCOPE_RUNS names.
"""

import streamlit as st

from probes.errors import HeadscopeError
from views.address import choose_run

st.set_page_config(page_title="headscope", page_icon="🧠", layout="wide")

page = st.navigation(
    [
        st.Page("views/home.py", title="Home", icon=":material/home:", url_path="start", default=True),
        # The default page answers at the bare address only; this one lets /home be typed and linked.
        st.Page("views/home.py", title="Home", url_path="home", visibility="hidden"),
        st.Page("views/runs.py", title="Runs", icon=":material/list:", url_path="runs"),
        st.Page("views/heads.py", title="Heads", icon=":material/grid_on:", url_path="heads"),
        st.Page("views/head.py", title="Head", icon=":material/search:", url_path="head"),
        st.Page("views/map.py", title="Map", icon=":material/zoom_in_map:", url_path="map"),
        st.Page("views/needles.py", title="Needles", icon=":material/find_in_page:", url_path="needles"),
        st.Page("views/ablation.py", title="Ablation", icon=":material/content_cut:", url_path="ablation"),
        st.Page("views/sinks.py", title="Sinks", icon=":material/local_parking:", url_path="sinks"),
        st.Page("views/roles.py", title="Roles", icon=":material/badge:", url_path="roles"),
        st.Page("views/pairs.py", title="Pairs", icon=":material/compare:", url_path="pairs"),
        st.Page("views/vision.py", title="Vision", icon=":material/visibility:", url_path="vision"),
        st.Page("views/hallucination.py", title="Hallucination", icon=":material/blur_on:", url_path="hallucination"),
        st.Page("views/rhythm.py", title="Rhythm", icon=":material/graphic_eq:", url_path="rhythm"),
    ],
    expanded=True,
)
try:
    choose_run()
    page.run()
except HeadscopeError as error:
    st.error(str(error))
