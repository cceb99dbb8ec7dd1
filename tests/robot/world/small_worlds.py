"""Small world-action networks that several tests share."""

import torch

from robot.world.layout import Layout
from robot.world.network import MixtureOfTransformers

LAYOUT = Layout(frames=3, tokens=2, channels=3, horizon=4, dof=2)
ROWS = 5


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return MixtureOfTransformers(**({"layers": 2, "video_width": 16, "action_width": 12, "heads": 2, "head_width": 6} | settings)).build(
        LAYOUT, observed=1, features=3
    )
