"""TRL's GRPO with credit: what the loss gets, what stays as it was, and what is logged. A tiny random model."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

pytest.importorskip("trl", reason="TRL is not installed: pip install 'headscope[rl]' to test training with credit")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from analysis.rhythm.credit import scaled_advantages, token_weights
from analysis.rhythm.credit_settings import Credit
from analysis.rhythm.grpo import CreditGRPOTrainer
from analysis.rhythm.reading import Horizon, read_rhythm
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads
from probes.subject import Subject

NEAR = Horizon(1, 6)
PROMPTS = ("1+2=", "12+34+5=", "7=", "4+44=")


def a_tokenizer() -> Any:
    vocabulary = {token: i for i, token in enumerate(("<pad>", "<s>", "</s>", *"0123456789+=;."))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def a_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **sizes, vocab_size=17, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )
    )  # fmt: skip


def length_of(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def trainer_for(tmp_path: Path) -> Callable[..., Any]:
    """Gives a trainer of the tiny model, and plain TRL's where no credit is named."""

    def made(credit: Credit | None, kind: Any = CreditGRPOTrainer, **more: Any) -> Any:
        settings = {
            "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 14, "max_steps": 2,
            "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
        }  # fmt: skip
        return kind(
            **({} if credit is None else {"credit": credit}),
            model=a_model(),
            processing_class=a_tokenizer(),
            reward_funcs=length_of,
            args=GRPOConfig(output_dir=str(tmp_path), **settings | more),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        )

    return made


def trained(trainer: Any) -> torch.Tensor:
    trainer.train()
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def what_the_loss_gets(trainer: Any) -> dict[str, Any]:
    """The first batch as the loss gets it; nothing is trained."""
    trainer.args.max_steps = 1
    seen: list[dict[str, Any]] = []
    plain = trainer._compute_loss

    def watched(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(dict(inputs))
        return plain(model, inputs) * 0

    trainer._compute_loss = watched
    trainer.train()
    return seen[0]


def test_without_credit_the_trainer_is_trls_own_to_the_last_bit(trainer_for):
    ours, plain = trained(trainer_for(Credit("none"))), trained(trainer_for(None, GRPOTrainer))
    assert torch.equal(ours, plain)


def test_reading_the_attention_disturbs_nothing_where_the_weights_are_all_one(trainer_for):
    # Neither the model, its mode, its attention function nor the random numbers of generation.
    trainer = trainer_for(Credit("coupled", amplification=1.0, horizon=NEAR))
    before = trainer.model.config._attn_implementation
    plain, modes = trainer.rhythm, []

    def watched(batch: Any) -> Any:
        found = plain(batch)
        modes.extend((module.training, trainer.model.config._attn_implementation) for module in trainer.model.modules())
        return found

    trainer.rhythm = watched
    assert torch.equal(trained(trainer), trained(trainer_for(Credit("none"))))
    assert set(modes) == {(True, before)}


@pytest.mark.parametrize("strategy", ["random", "local", "global", "coupled"])
def test_credit_changes_what_is_learnt(trainer_for, strategy):
    assert not torch.equal(trained(trainer_for(Credit(strategy, horizon=NEAR))), trained(trainer_for(Credit("none"))))


@pytest.mark.parametrize("sign", ["both", "positive"])
def test_the_loss_gets_every_tokens_advantage_times_the_weight_that_its_trace_gives_alone(trainer_for, sign):
    credit = Credit("coupled", sign=sign, horizon=NEAR, window=3, layers=(0, 2))
    plain = what_the_loss_gets(trainer_for(Credit("none")))
    trainer = trainer_for(credit)
    given = what_the_loss_gets(trainer)
    assert torch.equal(given["completion_ids"], plain["completion_ids"])
    local, leading = trainer.heads
    model = a_model().eval()
    subject = Subject(name="tiny", model=model, tokenizer=None, anatomy=read_anatomy(model))
    amplified = 0
    for i in range(8):
        prompt, own = given["prompt_ids"][i][given["prompt_mask"][i] > 0], given["completion_mask"][i] > 0
        written = given["completion_ids"][i][own]
        if len(written) < credit.window:
            continue
        found = read_rhythm(
            subject, torch.cat([prompt, written]), range(len(prompt), len(prompt) + len(written)), window=3,
            horizons={"near": NEAR}, layers=[0, 2],
        )  # fmt: skip
        waad = torch.tensor(found["waad"].values)[local].mean(0)[None]
        fai = torch.tensor(found["fai"].sel(horizon="near").values)[leading].mean(0)[None]
        weights = token_weights("coupled", waad, fai, torch.ones_like(waad, dtype=torch.bool))
        amplified += int((weights > 1).sum())
        wanted = scaled_advantages(plain["advantages"][i][None], weights, sign=sign)
        torch.testing.assert_close(given["advantages"][i][own][None], wanted)
    assert amplified > 10


def test_head_sets_are_the_shortest_and_the_longest_spans_of_the_middle_layers_and_stay(trainer_for):
    trainer = trainer_for(Credit("global", horizon=NEAR))
    trainer.train()
    local, leading = trainer.heads
    assert local.shape == leading.shape == (2, 4)  # layers 1 and 2 of three
    assert local.sum() == leading.sum() == 2
    assert not (local & leading).any()


def test_given_heads_are_taken_instead_and_only_their_layers_read(trainer_for):
    given = {"local_heads": tuple(parse_heads("L0H1")), "global_heads": tuple(parse_heads("L1H3,L0H0"))}
    trainer = trainer_for(Credit("coupled", horizon=NEAR, **given))
    trainer.train()
    local, leading = trainer.heads
    assert local.nonzero().tolist() == [[0, 1]]
    assert leading.nonzero().tolist() == [[0, 0], [1, 3]]


def test_every_log_says_what_share_of_the_steps_reading_took_and_of_the_tokens_was_amplified(trainer_for):
    trainer = trainer_for(Credit("local"))
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 2
    assert all(0 < entry["credit/attention_share"] < 1 for entry in steps)
    assert all(0.3 < entry["credit/amplified"] < 0.5 for entry in steps)


def test_a_batch_that_is_trained_on_several_times_keeps_the_weights_of_the_policy_that_wrote_it(trainer_for):
    trainer = trainer_for(Credit("local"), num_iterations=2)
    read: list[int] = []
    plain = trainer.rhythm
    trainer.rhythm = lambda batch: (read.append(1), plain(batch))[1]
    trainer.train()
    assert len(read) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "all"}, "'all' is no credit strategy: choose none, random, local, global, coupled."),
        ({"sign": "minus"}, "'minus' is no rule for the sign of advantages: choose both or positive."),
        ({"local_heads": (Head(0, 0),)}, "Credit needs both local and global heads, or neither to have them measured."),
    ],
)
def test_credit_that_can_not_be_given_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(HeadscopeError) as refused:
        Credit(**options)
    assert str(refused.value) == sentence


def test_a_head_that_the_model_lacks_is_refused_in_one_sentence(trainer_for):
    trainer = trainer_for(Credit("local", local_heads=(Head(7, 0),), global_heads=(Head(0, 0),)))
    with pytest.raises(HeadscopeError, match="L7H0 does not exist: this model has layers 0 to 2"):
        trainer.train()


def test_without_trl_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "analysis.rhythm.grpo")
    with pytest.raises(HeadscopeError, match=r"Training with credit needs TRL .*: pip install 'headscope\[rl\]'"):
        importlib.import_module("analysis.rhythm.grpo")
