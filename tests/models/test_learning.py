"""Learning itself: G2RPO raises brightness on pipelines of every kind, on noise that is the same before and after.

The measured rise stands beside each case; runs on a CPU repeat exactly, so half of it is a safe bound.
"""

import pytest
from harness import fresh_accelerate

from flowrl.flow import FlowSDE
from flowrl.models import AutoModel
from flowrl.models.tiny import TINY
from flowrl.rl import MultiGranularityAdvantage
from flowrl.train import AdamW, Evaluation, RLTrainer, UpdateSettings
from flowrl.train.metrics import read_metrics
from rewards import Brightness
from samplers import DiffusionGrid, ODESampler, ShiftedGrid, SingularStochasticSampler

PROMPTS = ("red", "blue")
FLOW, DIFFUSION = ShiftedGrid(steps=4, shift=2.0), DiffusionGrid(steps=4)


def rise(folder, model, grid, lr):
    """Change of the mean brightness of pictures drawn without noise, last against first."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    fresh_accelerate()
    trainer = RLTrainer(
        run_dir=str(folder / "run"),
        model=model,
        sampler=SingularStochasticSampler(
            grid=grid, dynamics=FlowSDE(noise_level=0.7), group_size=8, sde_indices=(0, 1, 2), strides=(1, 2)
        ),
        reward=Brightness(),
        prompts=str(folder / "prompts.txt"),
        updates=10,
        prompts_per_update=2,
        advantage=MultiGranularityAdvantage(),
        optimizer=AdamW(lr=lr),
        update=UpdateSettings(micro_batch=6),
        evaluation=Evaluation(prompts=PROMPTS, sampler=ODESampler(grid=grid), rewards=(Brightness(),), images_per_prompt=8),
        evaluate_every=1000,
        checkpoint_every=1000,
        trackers=(),
    )
    trainer.run()
    before, after = [line["eval/brightness"] for line in read_metrics(folder / "run" / "metrics.jsonl") if line["kind"] == "eval"]
    return after - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "grid", "lr", "measured"),
    [
        ("flux1", 16, FLOW, 3e-3, 0.111),
        ("qwen_image", 16, FLOW, 3e-3, 0.011),
        ("sana", 32, FLOW, 3e-3, 0.112),
        ("sd", 16, DIFFUSION, 3e-4, 0.015),
    ],
    ids=["packed tokens", "masked prompts", "linear attention", "diffusion model"],
)
def test_g2rpo_raises_the_reward_of_a_pipeline(name, side, grid, lr, measured, tmp_path):
    TINY[name]().save_pretrained(tmp_path / "pipeline")
    model = AutoModel(path=str(tmp_path / "pipeline"), height=side, width=side, decode_batch=64)
    assert rise(tmp_path, model, grid, lr) > measured / 2
