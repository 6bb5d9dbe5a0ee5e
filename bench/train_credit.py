"""Does credit by rhythm help? GRPO on worked sums: plain, random tokens, local, global and coupled credit.

    python bench/train_credit.py --out credit --seeds 3                       # every arm and seed, in turn
    python bench/train_credit.py --out credit --only coupled:1 --device cuda  # one of them, so that many run at once
    python bench/train_credit.py --out credit --table                         # the tables of what is there
    python bench/train_credit.py --out credit --picture curves.png            # and its learning curves
    python bench/train_credit.py --out short --model smollm2-135m --only coupled:0 --steps 4 --batch 8

A seed has one supervised model (bench/credit_task.py), from which all arms start; run one arm of each seed first, or
`--base-only`, before others run beside it. With --resume an arm and seed that is already in --out is skipped. Each
writes <arm>-<seed>.json: the settings, the accuracy on held-out problems every so many steps (of answers drawn
as GRPO draws them, and of greedy ones), and what TRL logged.
Needs the extra `rl`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import credit_report
import credit_setups
import credit_task
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig

from analysis.rhythm.credit_settings import Credit
from analysis.rhythm.grpo import CreditGRPOTrainer

ARMS = ("none", "random", "local", "global", "coupled")
KEPT = ("reward", "step_time", "entropy", "credit/attention_share", "credit/amplified", "completions/mean_length")


class Judge(TrainerCallback):
    """Accuracy on held-out problems before the first step and every so many after it."""

    def __init__(self, judged: Callable[[Any], dict[str, float]], every: int) -> None:
        self.judged, self.every, self.curve = judged, every, []

    def _judge(self, step: int, model: Any) -> None:
        self.curve.append({"step": step, **self.judged(model)})
        print(self.curve[-1], flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._judge(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every == 0:
            self._judge(state.global_step, model)


def train(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One arm and seed, and what is kept of it."""
    setup = (credit_setups.small if options.model == "own" else credit_setups.loaded)(seed, options)
    rate = options.rate or setup.rate
    judges = [] if setup.judge is None else [Judge(setup.judge, options.every)]
    trainer = CreditGRPOTrainer(
        credit=Credit(arm, sign=options.sign, horizon=setup.horizon, seed=seed),  # type: ignore[arg-type]
        model=setup.model,
        processing_class=setup.tokenizer,
        reward_funcs=setup.reward,
        args=_configuration(seed, setup.longest, rate, options),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in setup.prompts]),
        callbacks=judges,
    )
    began = time.monotonic()
    trainer.train()
    return {
        "arm": arm, "seed": seed, "model": options.model, "steps": options.steps, "batch": options.batch,
        "sign": options.sign, "rate": rate, "horizon": [setup.horizon.nearest, setup.horizon.farthest],
        "judged": options.judged, "parameters": setup.model.num_parameters(), "device": _device_name(options.device),
        "torch": torch.__version__, "trl": version("trl"), "seconds": round(time.monotonic() - began, 1),
        "heads": None if trainer.heads is None else [_named(mask, trainer.layers) for mask in trainer.heads],
        "curve": [point for judge in judges for point in judge.curve],
        "log": [_kept(entry) for entry in trainer.state.log_history if "reward" in entry],
    }  # fmt: skip


def _named(mask: torch.Tensor, layers: tuple[int, ...]) -> list[str]:
    """Heads such as L2H1 from a mask over (layer that is read, head)."""
    return [f"L{layers[row]}H{head}" for row, head in mask.nonzero().tolist()]


def _kept(entry: dict[str, Any]) -> dict[str, Any]:
    return {"step": entry["step"], **{name: entry[name] for name in KEPT if name in entry}}


def _configuration(seed: int, longest: int, rate: float, options: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(options.out / "trainer"),
        per_device_train_batch_size=options.batch,
        num_generations=credit_setups.GENERATIONS,
        max_completion_length=longest,
        max_steps=options.steps,
        learning_rate=rate,
        lr_scheduler_type="constant",
        seed=seed,
        logging_steps=max(1, options.every // 5),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=options.device == "cpu",
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else f"cpu ({platform.machine()})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="own", help="own, or what `headscope` loads")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="arm:seed[,arm:seed...] in place of --arms and --seeds")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=256, help="completions a step, 8 of each problem")
    parser.add_argument("--tokens", type=int, default=64, help="longest completion of a model that is not our own")
    parser.add_argument("--every", type=int, default=20, help="steps between two points of the curve")
    parser.add_argument("--judged", type=int, default=512, help="held-out problems")
    parser.add_argument("--rate", type=float, help="learning rate; 3e-5 for our own model, 1e-6 for another")
    parser.add_argument("--sign", choices=("both", "positive"), default="both")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--base-only", action="store_true", help="train the supervised models and stop")
    parser.add_argument("--resume", action="store_true", help="skip an arm and seed that is in --out already")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and stop")
    parser.add_argument("--picture", type=Path, help="draw the curves of what is there into this file and stop")
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = [(arm, seed) for seed in range(options.seeds) for arm in options.arms.split(",")]
    if options.only:
        pairs = [(arm, int(seed)) for arm, seed in (each.split(":") for each in options.only.split(","))]
    if options.base_only:
        for seed in sorted({seed for _, seed in pairs}):
            credit_task.base(options.out, seed, credit_task.held_out(options.judged), options.device)
        return
    if options.picture:
        credit_report.picture(options.out, options.picture)
        return
    for arm, seed in [] if options.table else pairs:
        path = options.out / f"{arm}-{seed}.json"
        if options.resume and path.exists():
            print(f"{path} is there: skipped")
            continue
        print(f"{arm}, seed {seed}", flush=True)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(train(arm, seed, options)) + "\n")
        scratch.replace(path)
    print(credit_report.table(options.out), credit_report.differences(options.out), sep="\n\n")


if __name__ == "__main__":
    main()
