"""What every adapter's tests do, written once; imported as ``harness`` (see conftest.py).

A test file of an adapter makes a tiny random pipeline, saves it, and calls these with its own way of calling the pipeline.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from flowrl.flow import FlowSDE
from flowrl.models import LORA_FILE, DiffusersSource, ImageModel, LoRA
from flowrl.rl import MultiGranularityAdvantage, facts_of
from flowrl.train import AdamW, RLTrainer, UpdateSettings
from flowrl.train.metrics import read_metrics
from rewards import Brightness
from samplers import ExplicitGrid, ODESampler, ShiftedGrid, SingularStochasticSampler

STEPS = 4


def fresh_accelerate() -> None:
    """Forget the accelerator of an earlier run in this process."""
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()


def standard_noise(model: ImageModel, rows: int, seed: int = 7) -> Tensor:
    """The same standard normal latents at every call, ``(rows, *state_shape)``."""
    return torch.randn(rows, *model.state_shape, generator=torch.Generator().manual_seed(seed))


def ode_samples(model: ImageModel, prompts: list[str], noise: Tensor, steps: int = STEPS) -> Tensor:
    """Our ODE sampler on the pipeline's own grid: final latents ``(prompt, *state_shape)``."""
    sampler = ODESampler(grid=ExplicitGrid(values=tuple(model.default_times(steps).tolist())))
    state = model.initial_state(noise, sampler.initial_time)
    return sampler.sample(model.field(), state, model.encode(prompts)).final


def two_updates(source: DiffusersSource, folder: Path, prompts: list[str], **fields: Any) -> Path:
    """Two G2RPO updates on brightness, the ratio gate before the first; the folder of the trained weights.

    ``fields`` replace those of the trainer.
    """
    fresh_accelerate()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": prompt, **facts_of(prompt)}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    trainer = RLTrainer(
        run_dir=str(folder / "run"),
        model=source,
        sampler=SingularStochasticSampler(
            grid=ShiftedGrid(steps=STEPS), dynamics=FlowSDE(noise_level=0.7), group_size=2, sde_indices=(0, 1), strides=(1, 2)
        ),
        reward=Brightness(),
        prompts=str(folder / "prompts.jsonl"),
        updates=2,
        prompts_per_update=2,
        advantage=MultiGranularityAdvantage(),
        optimizer=AdamW(lr=1.0e-2),
        update=UpdateSettings(micro_batch=3),
        trackers=(),
    )
    summary = replace(trainer, **fields).run()
    lines = [line for line in read_metrics(summary.run_dir / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 2
    assert lines[0]["ratio_max_dev"] <= 2e-5
    return summary.checkpoint / "weights"


def check_training(
    source: DiffusersSource,
    folder: Path,
    prompts: list[str],
    draw: Callable[[Any, Tensor], Tensor],
    *,
    load_pipeline: Callable[..., Any],
    tolerance: float = 1e-5,
    **fields: Any,
) -> None:
    """Train by LoRA and with all weights; what is saved, diffusers itself loads, and draws the trained model's samples.

    Args:
        source: Of the adapter, without a LoRA.
        folder: For the runs.
        prompts: At least two.
        draw: ``(pipeline, noise) -> latents`` of the prompts by the pipeline itself, in our state's shape.
        load_pipeline: ``(**parts)``: the pipeline as diffusers loads it, with these parts replaced.
        tolerance: Largest difference of a latent.
        fields: Of the trainer.
    """
    base = draw(load_pipeline(), noise := standard_noise(source.load("cpu"), len(prompts)))

    lora = replace(source, lora=LoRA(rank=2, alpha=4.0))
    weights = two_updates(lora, folder / "lora", prompts, **fields)
    pipeline = load_pipeline()
    pipeline.load_lora_weights(weights, weight_name=LORA_FILE)
    _check_same(lora, weights, prompts, noise, draw(pipeline, noise), base, tolerance)

    weights = two_updates(source, folder / "full", prompts, **fields)
    network = type(getattr(load_pipeline(), source.network)).from_pretrained(weights / source.network)
    _check_same(source, weights, prompts, noise, draw(load_pipeline(**{source.network: network}), noise), base, tolerance)


def _check_same(source: DiffusersSource, weights: Path, prompts: list[str], noise: Tensor, drawn: Tensor, base: Tensor, tol: float) -> None:
    model = source.load("cpu")
    model.load_weights(weights)
    torch.testing.assert_close(ode_samples(model, prompts, noise), drawn, atol=tol, rtol=0)
    assert (drawn - base).abs().max() > 1e-3, "training moved nothing"
