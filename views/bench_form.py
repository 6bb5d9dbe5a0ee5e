"""The form of Bench: heads, what is done to them, whom to ask; then the line that asks it, and the button that does."""

from collections.abc import Collection, Sequence

import streamlit as st

from analysis.bench import obstacles
from analysis.bench.model_size import model_size
from analysis.bench.parts import parts_of
from analysis.bench.question import Question
from analysis.interventions import Intervention, parse
from analysis.runs import Run
from probes.errors import HeadscopeError
from views import bench_ask, bench_heads, bench_intervention, bench_operation, next_steps, reading
from views.address import held, hold
from views.job_card import submit_button
from views.run_words import plain

NO_HEADS = "Name heads first: type them, take them by a metric, or press Change beside heads on another page."
NO_RANKING = "Heads by a metric need a finished retrieval run of the same model: type headscope retrieval."


def section(run: Run) -> None:
    size = model_size(run.manifest)
    sources = bench_heads.ranking_runs(run)
    asked_of, problems = bench_ask.chosen()
    spans, lacking = obstacles.shared_spans(asked_of)
    st.subheader("1 · Change")
    heads = bench_heads.choose(sources)
    heads_by_name = st.empty()
    parts = bench_intervention.choose(heads, spans)
    if not bench_intervention.edit(parts):
        problems.append(bench_intervention.MEND)
    bench_operation.left_out(lacking)
    st.subheader("2 · Ask")
    count, controls, seed = bench_ask.choose(asked_of)
    st.subheader("3 · Run")
    if not heads:
        st.warning(NO_HEADS)
        return
    try:
        interventions = parse(parts.text)
        ranked_by = _ranked_by(interventions, sources)
        scores = bench_heads.scores(ranked_by) if ranked_by else None
        chosen = obstacles.chosen_heads(interventions, size, scores, seed=seed)
    except HeadscopeError as error:
        problems.append(str(error))
    else:
        heads_by_name.caption(bench_heads.said(chosen, len(size.heads()), ranked_by))
        problems += obstacles.missing_spans(interventions, asked_of)
        problems += obstacles.read_in_one_prefill(interventions, asked_of)
    for problem in problems:
        st.warning(plain(problem))
    if problems:
        return
    _say_size(asked_of, count, controls, obstacles.without_controls(interventions, chosen, size))
    source = _name(ranked_by) if ranked_by else ""
    question = Question(parts.text, next_steps.asked_model(run), bench_ask.wanted(), count, controls, seed, source)
    st.code(question.line, language=None, wrap_lines=True)
    submit_button("Run", question.arguments, key="bench")


def fill(question: Question) -> None:
    """Put a question into the URL, for the form to show."""
    bench_intervention.hold_parts(parts_of(question.intervention))
    hold("from", question.heads_from)
    hold("tasks", question.tasks)
    hold("count", str(question.count))
    hold("controls", str(question.controls))
    hold("seed", str(question.seed))


def _ranked_by(interventions: Sequence[Intervention], sources: Sequence[Run]) -> Run | None:
    """The run whose metrics choose heads. Raises HeadscopeError where heads need one and there is none."""
    if not any(each.needs_scores for each in interventions):
        return None
    if not sources:
        raise HeadscopeError(NO_RANKING)
    found = next((run for run in sources if run.id == held("from")), sources[0])
    hold("from", found.id)
    return found


def _name(run: Run) -> str:
    """What the command line finds it by: the example that ships is in no folder of runs."""
    return str(run.path) if reading.is_example(run) else run.id


def _say_size(asked_of: Collection[str], count: int, controls: int, alone: str) -> None:
    sets = 0 if alone else controls
    beside = f", and with {sets} {'set' if sets == 1 else 'sets'} of random heads" if sets else ""
    st.caption(
        f"{count} examples of {plain(' and of '.join(asked_of))}, each as the model is, with the "
        f"change{beside}: {count * len(asked_of) * (2 + sets):,} results. {alone if controls else ''}"
    )
