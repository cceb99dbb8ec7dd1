"""How well a world-action model predicts episodes that it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flowrl.shapes import seeded_generator, state_mean
from robot.learning.lesson import Curve
from robot.world.denoising import Denoising, JointField
from robot.world.schedules import MaskedSchedule, SharedSchedule

if TYPE_CHECKING:
    from flowrl.flow import Condition
    from robot.normalise import NormStats
    from robot.world.dreamer import Dreamer, LatentWindows
    from robot.world.schedules import ScheduleConfig
    from robot.world.training import WorldActionTraining

__all__ = ["CURVES", "validate"]

CURVES = (
    Curve(
        title="Loss by stream",
        note="Flow-matching error on episodes that were held out, mean over the numbers of a stream.",
        lines={"eval/loss_video": "frames", "eval/loss_action": "actions"},
    ),
    Curve(
        title="Action error",
        note="Root-mean-square distance of sampled from demonstrated actions over the executed steps, normalised units: frames imagined "
        "with the actions (shared schedule), and frames left as noise (masked). Several ways to act leave an error however good the model.",
        lines={"eval/action_error": "shared", "eval/action_error_masked": "masked"},
    ),
    Curve(
        title="Error of imagined frames",
        note="Root-mean-square distance of sampled from real latents under the shared schedule, all frames and the last one.",
        lines={"eval/frame_error": "all frames", "eval/last_frame_error": "last frame"},
    ),
)

_LOSS_WINDOWS, _ACTION_WINDOWS = 512, 64


@torch.no_grad()
def validate(job: WorldActionTraining, module: Dreamer, windows: LatentWindows, stats: NormStats) -> dict[str, float]:
    """Measure with noise that stays the same from one validation to the next.

    Args:
        job: The configuration.
        module: Its networks; left in training mode.
        windows: Of the held-out episodes.
        stats: Normaliser of the actions.

    Returns:
        What :data:`CURVES` shows, without ``eval/``, and ``loss``, the training loss without augmentation.
    """
    layout, device = module.network.layout, windows.latents.actions.device
    rows = torch.randperm(len(windows), generator=seeded_generator(job.seed, 3))[:_LOSS_WINDOWS]
    module.eval()
    latents, actions = windows.future(rows), stats.normalise(windows.latents.chunks(rows))
    generator = seeded_generator(job.seed, 4)
    noise = layout.noise(len(rows), generator).to(device)
    times = job.times.draw(len(rows), job.frames, generator).to(device)
    video, action = module(layout.pack(latents, actions), noise, times, *windows.shown(rows)).mean(0).tolist()
    few = rows[:_ACTION_WINDOWS]
    condition = module.condition(*windows.shown(few))
    shared = _sampled(job, module, condition, SharedSchedule(steps=job.schedule.steps))
    masked = _sampled(job, module, condition, MaskedSchedule(steps=job.schedule.steps))
    imagined = shared.latents - latents[: len(few)]
    module.train()
    return {
        "loss": job.video_weight * video + action,
        "loss_video": video,
        "loss_action": action,
        "action_error": _rms((shared.actions - actions[: len(few)])[:, : job.execute]),
        "action_error_masked": _rms((masked.actions - actions[: len(few)])[:, : job.execute]),
        "frame_error": _rms(imagined),
        "last_frame_error": _rms(imagined[:, -1]),
    }


def _sampled(job: WorldActionTraining, module: Dreamer, condition: Condition, config: ScheduleConfig) -> Denoising:
    layout, schedule = module.network.layout, config.build(job.frames)
    noise = layout.noise(len(condition), seeded_generator(job.seed, 5)).to(condition.tensors["observed"].device)
    return Denoising(JointField(network=module.network), layout, condition, noise).follow(schedule)


def _rms(error: torch.Tensor) -> float:
    return float(state_mean(error**2).mean().sqrt())
