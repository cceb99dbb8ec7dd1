"""What leaving out unchanged evaluations saves a world-action model, and what a noise gate adds.

    python benchmarks/noisegate_cost.py

Time per action chunk on networks with random weights (4 frames of 3 × 6 numbers, chunks of 16 × 2 actions, 8 denoising steps):

- each hand-made schedule with and without leaving out what does not change, where frames do not attend to actions: a masked frame's keys
  and values are computed once, and actions that wait are not computed;
- the same with causal attention among frames, where frames before the first that moved are not computed again either;
- the same model where frames attend to actions, so that nothing can be left out;
- a gate's decisions, against the shared schedule without a gate.

The ways of a comparison take turns in one process with one thread; ratios are taken within a turn.

Writes ``benchmarks/results/noisegate_cost.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from turns import compare, machine, markdown_rows

from flowrl.flow import Condition
from flowrl.shapes import seeded_generator
from robot import NoiseGate, PerTokenSchedule
from robot.world.denoising import Denoising, JointField
from robot.world.layout import Layout
from robot.world.network import MixtureOfTransformers

if TYPE_CHECKING:
    from robot.world.denoising import Schedule
    from robot.world.network import JointTransformer

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/noisegate_cost.py"
LAYOUT, STEPS = Layout(frames=4, tokens=3, channels=6, horizon=16, dof=2), 8
KINDS = ("shared", "masked", "half", "video_first", "action_first", "pyramid")


def network(*, video_sees_action: bool, causal: bool = False) -> JointTransformer:
    """The size of the benchmark's PushT model."""
    torch.manual_seed(0)
    config = MixtureOfTransformers(video_sees_action=video_sees_action, frame_attention="causal" if causal else "full")
    return config.build(LAYOUT).eval().requires_grad_(requires_grad=False)


def denoise(net: JointTransformer, schedule: Schedule, rows: int, *, skip: bool = True) -> Denoising:
    """One chunk per row."""
    seen = torch.randn(rows, 1, LAYOUT.tokens, LAYOUT.channels, generator=seeded_generator(1))
    noise = LAYOUT.noise(rows, seeded_generator(2))
    return Denoising(JointField(network=net), LAYOUT, Condition({"observed": seen}), noise, skip=skip).follow(schedule)


def skipping(turns: int) -> list[dict[str, Any]]:
    """Every schedule with and without skipping."""
    joined = network(video_sees_action=True)
    apart = {"full": network(video_sees_action=False), "causal": network(video_sees_action=False, causal=True)}
    rows = []
    for batch, attention, kind in product((1, 32), apart, KINDS):
        net, schedule = apart[attention], getattr(PerTokenSchedule, kind)(STEPS, LAYOUT.frames)
        whole, skipped = (denoise(net, schedule, batch, skip=skip) for skip in (False, True))
        ways = {
            "all": partial(denoise, net, schedule, batch, skip=False),
            "skipping": partial(denoise, net, schedule, batch),
            "frames attend to actions": partial(denoise, joined, schedule, batch),
        }
        facts = {
            "batch": batch,
            "attention": attention,
            "schedule": kind,
            "frames evaluated": skipped.video_frames // batch,
            "chunks evaluated": skipped.action_rows // batch,
            "largest difference": float((whole.x - skipped.x).abs().max()),
        }
        rows.append(facts | compare(ways, turns, "all"))
    return rows


def gating(turns: int) -> list[dict[str, Any]]:
    """A gate on top of the network, against the shared schedule."""
    net, shared = network(video_sees_action=True), PerTokenSchedule.shared(STEPS, LAYOUT.frames)
    gate = NoiseGate(LAYOUT.frames, LAYOUT.tokens, LAYOUT.channels, steps=STEPS).eval()
    sizes = {name: sum(weight.numel() for weight in module.parameters()) for name, module in (("model", net), ("gate", gate))}
    rows = []
    for batch in (1, 32):
        ways = {"shared": partial(denoise, net, shared, batch), "gated": partial(denoise, net, gate, batch)}
        rows.append({"batch": batch, "weights of the model": sizes["model"], "of the gate": sizes["gate"]} | compare(ways, turns, "shared"))
    return rows


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    before, after = (result["load_average"][when][0] for when in ("before", "after"))
    lines = ["# Cost of a chunk under a schedule per latent", "", f"`{COMMAND}`", ""]
    lines.append(f"{result['machine']}; load average {before:.1f} before, {after:.1f} after.")
    lines.append(f"{STEPS} denoising steps. Median [least, most] of {result['turns']} turns, milliseconds; ratios within a turn.")
    lines += [
        "",
        "## Leaving out what does not change",
        "",
        "Evaluations are those per row with skipping.",
        "",
        *markdown_rows(result["skipping"]),
    ]
    lines += ["", "## The gate", "", *markdown_rows(result["gating"])]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    before = os.getloadavg()
    result: dict[str, Any] = {
        "command": COMMAND,
        "turns": turns,
        "machine": machine(),
        "skipping": skipping(turns),
        "gating": gating(turns),
    }
    result["load_average"] = {"before": before, "after": os.getloadavg()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "noisegate_cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "noisegate_cost.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
