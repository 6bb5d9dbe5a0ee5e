"""Mitigations by name: their texts, their controls, and a model that answers under each."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from analysis.vision.boosting import BoostImage
from analysis.vision.mitigations import Mitigation, caption, first_logits, mitigation, presets, yes_shares
from analysis.vision.preset import Prepared
from analysis.vision.reinforcement import Vhr
from analysis.vision.yes_or_no import answer_tokens
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.generation import generate
from probes.image_prompt import ImagePrompt, image_prompt
from probes.subject import Subject, load
from tests.analysis.vision.deep_llava import deep_llava
from tests.probes.families import folder_of

EVERY = [
    "none", "vhr", "vhr(alpha=3, heads=random)", "var(tau=1.5, floor=0)", "var(form=released, ratio=0.5, tau=1.5)",
    "sink_to_image(0.15)", "paint", "paint(modulation=divergence, gamma=2)", "pai", "pai(gamma=1)", "devils", "vaf",
    "boost(1.3)", "vcd", "dola", "weight(image, 1.2) @ all; scale(0.5) @ L0H0",
]  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """With a tokenizer of bytes, of which Y and N stand for the two answers."""
    found = load(str(folder_of("llava", tmp_path_factory.mktemp("llava"))), device="cpu", dtype="float32")
    found.__dict__["stop_tokens"] = frozenset()
    return found


@pytest.fixture(scope="module")
def prompts(subject: Subject) -> list[ImagePrompt]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    questions = ("What is it?", "Is there a cat?")
    return [image_prompt(subject, Image.fromarray(p), text) for p, text in zip(pixels, questions, strict=True)]


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.vision.yes_or_no.SPELLINGS", {"yes": ("Y", "y"), "no": ("N", "n")})


@pytest.mark.parametrize("text", EVERY)
def test_a_batch_is_answered_as_each_prompt_alone(
    text: str, subject: Subject, prompts: list[ImagePrompt], letters: None
) -> None:
    chosen = mitigation(text)
    together = caption(subject, prompts, chosen, 4, seed=3)
    assert together == [caption(subject, [prompt], chosen, 4, seed=3)[0] for prompt in prompts]
    shares = yes_shares(subject, prompts, chosen, seed=3)
    alone = torch.cat([yes_shares(subject, [prompt], chosen, seed=3) for prompt in prompts])
    assert torch.allclose(shares, alone, atol=1e-4)
    assert bool(((shares >= 0) & (shares <= 1)).all())
    if text == "none":
        assert together == generate(subject, prompts, new_tokens=4)


def test_texts_read_back_the_same() -> None:
    for text in [*EVERY, *(each.name for each in presets())]:
        chosen = mitigation(text)
        assert mitigation(chosen.name) == chosen
        assert mitigation(chosen.name).name == chosen.name
    assert mitigation("vhr(1.2)") == mitigation("vhr( alpha = 1.2 )") == Vhr(alpha=1.2)
    assert mitigation("vhr(alpha=1.2)").name == "vhr(alpha=1.2)"
    assert mitigation("vhr(outliers=no)") == Vhr(outliers=False)
    assert mitigation("boost").name == "boost(1.3)"
    assert mitigation("boost(1.5, top=27)") == BoostImage(1.5, 27)
    assert mitigation("weight(image,1.2) @ all").name == "weight(image, 1.2) @ all"


def test_every_preset_says_where_it_is_from_and_what_it_does() -> None:
    listed = presets()
    assert [each.name for each in listed] == [
        "none", "vhr", "var", "sink_to_image(0.15)", "paint", "pai", "devils", "vaf", "boost(1.3)", "vcd", "dola",
    ]  # fmt: skip
    assert all(each.line for each in listed)
    assert all(each.paper for each in listed[1:])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vhd", "no mitigation 'vhd': choose among none, vhr, var"),
        ("vhr(beta=2)", "vhr has no setting 'beta': it has alpha, heads, layers"),
        ("none(1)", "none has no setting '1': it has none"),
        ("vhr(alpha=loud)", "alpha: 'loud' is no number"),
        ("vhr(1, alpha=2)", "alpha: vhr takes it once"),
        ("vhr(outliers=maybe)", "neither yes nor no"),
        ("vhr(alpha=nan)", "alpha: nan is no finite number"),
        ("boost(1.5, top=1.5)", "top: '1.5' is no whole number"),
        ("vhr(heads=some)", "'some' is not the name of a head"),
        ("vcd(step=1000)", "step: 1000 is outside 0 to 999"),
        ("dola(cutoff=0)", "cutoff: 0 must lie above 0 and at most at 1"),
        ("paint(modulation=both)", "modulation: 'both' is none of none, divergence, mass"),
        ("vaf(image=-1)", "image: -1 is negative"),
        ("wait(image, 2) @ all", "operation: 'wait"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text: str, says: str) -> None:
    with pytest.raises(HeadscopeError) as caught:
        mitigation(text)
    assert says in str(caught.value)


def test_controls_draw_heads_at_random_and_have_none_themselves() -> None:
    for text, control in {
        "vhr(alpha=3)": "vhr(alpha=3, heads=random)",
        "var": "var(heads=random)",
        "sink_to_image(0.3)": "sink_to_image(0.3, heads=random)",
        "boost(1.5, top=3)": "boost(1.5, top=3, heads=random)",
        "paint(modulation=mass)": "paint(modulation=mass, heads=random)",
        "scale(2) @ L0H1": "scale(2) @ random(L0H1, 0)",
        "scale(2) @ L0H1, L5": "scale(2) @ random(not(not(L0H1, L5)), 0)",
    }.items():
        chosen = mitigation(text).control
        assert chosen is not None
        assert chosen.name == control
        assert chosen.control is None
    for text in ("none", "paint", "pai", "devils", "vaf", "boost(1.3)", "vcd", "dola", "weight(image, 2) @ all"):
        assert mitigation(text).control is None


def test_a_random_control_of_an_intervention_follows_the_seed(picture_prompt: Any) -> None:
    subject = deep_llava()
    control = mitigation("output_zero @ L2H0, L5H1").control
    assert control is not None
    drawn = [str(control.prepare(subject, [picture_prompt(subject, 2, 3)], seed=seed).plan) for seed in range(6)]
    assert len(set(drawn)) > 1


def test_interventions_find_their_spans_in_each_prompt(subject: Subject, prompts: list[ImagePrompt]) -> None:
    plan = mitigation("knock_out(image) @ all").prepare(subject, prompts).plan
    assert plan is not None
    tables = plan.prefill[0].weights[0].keys.table, plan.prefill[0].weights[1].keys.table
    found = [table[0].nonzero()[:, 0].tolist() for table in tables]
    assert found == [[*prompt.spans["image"]] for prompt in prompts]


def test_yes_shares_are_those_of_the_contrasted_logits(
    subject: Subject, prompts: list[ImagePrompt], letters: None
) -> None:
    chosen = mitigation("vcd(cutoff=1e-30)")
    yes, no = answer_tokens(subject.tokenizer)
    own, contrasted = first_logits(subject, prompts, chosen.prepare(subject, prompts))
    with torch.inference_mode():
        plain = forward(subject, collate(subject, prompts)).logits[:, -1]
    assert torch.allclose(own, plain, atol=1e-5)
    p = contrasted.softmax(-1)
    expected = p[:, yes].sum(-1) / (p[:, yes].sum(-1) + p[:, no].sum(-1))
    assert torch.allclose(yes_shares(subject, prompts, chosen), expected, atol=1e-5)


def test_where_neither_answer_is_plausible_the_models_own_logits_decide(
    subject: Subject, prompts: list[ImagePrompt], letters: None
) -> None:
    class Neither:
        name, control = "neither", None

        def prepare(self, subject: Subject, prompts: Any, *, seed: int = 0) -> Prepared:
            return Prepared(contrast=Nothing())

    class Nothing:
        readers = ()

        def streams(self, prompts: Any) -> list[Any]:
            return []

        def combine(self, logits: Tensor, others: Any) -> Tensor:
            return torch.full_like(logits, -torch.inf)

    never: Mitigation = Neither()
    own = yes_shares(subject, prompts, mitigation("none"))
    assert torch.allclose(yes_shares(subject, prompts, never), own, atol=1e-6)


def test_scores_reach_the_boost_that_asks_for_them(picture_prompt: Any) -> None:
    subject = deep_llava()
    scores = np.arange(32.0).reshape(8, 4)
    chosen = mitigation("boost(2, top=3)", scores=scores)
    plan = chosen.prepare(subject, [picture_prompt(subject, 2, 3)]).plan
    assert plan is not None
    assert plan.decode[7].weights[0].factor.tolist() == [[1, 2, 2, 2]]
    control = chosen.control
    assert isinstance(control, BoostImage)
    assert control.scores is scores
