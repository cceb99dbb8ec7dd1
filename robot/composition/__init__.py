"""General Policy Composition: diffusion, flow and VLA policies combined at test time."""

from robot.composition.composer import Composer
from robot.composition.guidance import CostGuidance, Guidance, UnconditionalGuidance, smoothness
from robot.composition.loop import BoundComposition, Composed
from robot.composition.member import Member
from robot.composition.sampling import Sampling
from robot.composition.scheduler import sample_with_scheduler

__all__ = [
    "BoundComposition",
    "Composed",
    "Composer",
    "CostGuidance",
    "Guidance",
    "Member",
    "Sampling",
    "UnconditionalGuidance",
    "sample_with_scheduler",
    "smoothness",
]
