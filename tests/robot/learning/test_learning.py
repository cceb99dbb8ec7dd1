"""Learning itself: from demonstrations that know two ways to act, every process and encoder learns the conditional law.

At state s the law of TwoWays is x = s ± 1 with equal probability, y = 3 − 2 s, all steps of a chunk agreeing on the way. A regression would
answer x = s. The bounds are about twice what was measured with two seeds.
"""

import pytest
import torch
from demos import job

from flowrl.train import AdamW
from robot.learning import (
    ActionMLP,
    ActionTransformer,
    ActionUNet,
    Diffusion,
    Flow,
    ImageEncoder,
    KeypointEncoder,
    StateEncoder,
    TwoWays,
    load_policy,
)
from robot.learning.examples import seen_at
from robot.types import Observation

pytestmark = pytest.mark.slow

CAMERA = ImageEncoder(cameras=("picture",), channels=(8, 8), points=4, width=16)
SAMPLE = {"process": Diffusion(predict="sample")}
CASES = {
    "flow": {"process": Flow()},
    "reversed flow": {"process": Flow(reversed_time=True)},
    "epsilon": {"process": Diffusion()},
    "sample": SAMPLE,
    "v": {"process": Diffusion(predict="v"), "steps": 800},
    "keypoints": {"process": Flow(), "encoder": KeypointEncoder(keypoints=("keypoints",), width=16)},
    "pictures": {"process": Flow(), "encoder": CAMERA},
    "U-Net": SAMPLE | {"network": ActionUNet(channels=(16, 16), kernel=3, time_width=16), "steps": 250, "batch_size": 64},
    "transformer": SAMPLE | {"network": ActionTransformer(width=32, layers=2), "batch_size": 64},
}


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_both_ways_to_act_are_learned_and_never_their_mean(fields, tmp_path):
    defaults = {
        "demonstrations": TwoWays(),
        "encoder": StateEncoder(sensors=("state",)),
        "network": ActionMLP(width=96, layers=2, time_width=32),
        "steps": 400,
        "batch_size": 128,
        "optimizer": AdamW(lr=4e-3, schedule="cosine", warmup_steps=20),
        "ema_decay": 0.97,
        "validation_share": 0.0,
        "log_every": 200,
        "checkpoint_every": 1000,
    }
    job(tmp_path / "run", **(defaults | fields)).run()
    policy = load_policy(tmp_path / "run")
    for state in (-0.6, 0.3):
        frames = {name: torch.as_tensor(value) for name, value in seen_at(state).items()}
        actions = policy.act(
            Observation({name: frame.expand(1000, 1, *frame.shape) for name, frame in frames.items()}), torch.Generator().manual_seed(0)
        ).values
        way = actions[..., 0] - state
        up = way[:, 0] > 0
        assert up.float().mean().item() == pytest.approx(0.5, abs=0.2)
        assert way[up].mean().item() == pytest.approx(1.0, abs=0.25)
        assert way[~up].mean().item() == pytest.approx(-1.0, abs=0.25)
        assert (way.abs() < 0.5).float().mean().item() < 0.2  # N(0, 1), of the same mean and spread, has 0.38 there
        assert ((way > 0) == up[:, None]).float().mean().item() > 0.93
        assert actions[..., 1].mean().item() == pytest.approx(3 - 2 * state, abs=0.15)
        assert actions[..., 1].std().item() < 0.4  # over all states it is 1.15
