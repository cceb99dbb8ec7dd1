"""What is good: one reward a file. Each is a frozen dataclass that scores pictures against prompts (`flowrl.rl.Reward`)."""

from rewards.aesthetic import Aesthetic
from rewards.brightness import Brightness
from rewards.clip_score import CLIPScore
from rewards.composite import CompositeReward
from rewards.diversity import ClipFeatures, Diversity, PixelFeatures
from rewards.frames import FrameReward
from rewards.geneval import GenEval
from rewards.hpsv2 import HPSv2
from rewards.image_reward import ImageReward
from rewards.jpeg import JpegCompressibility
from rewards.legibility import HeldoutLegibility, Legibility
from rewards.ocr import OCRAccuracy
from rewards.pickscore import PickScore
from rewards.ranks import WithinGroupRank
from rewards.remote import RemoteReward
from rewards.scales import BatchScale, FixedScale, GroupScale, RunningScale

OWNER = "flowrl"

__all__ = [
    "OWNER",
    "Aesthetic",
    "BatchScale",
    "Brightness",
    "CLIPScore",
    "ClipFeatures",
    "CompositeReward",
    "Diversity",
    "FixedScale",
    "FrameReward",
    "GenEval",
    "GroupScale",
    "HPSv2",
    "HeldoutLegibility",
    "ImageReward",
    "JpegCompressibility",
    "Legibility",
    "OCRAccuracy",
    "PickScore",
    "PixelFeatures",
    "RemoteReward",
    "RunningScale",
    "WithinGroupRank",
]
