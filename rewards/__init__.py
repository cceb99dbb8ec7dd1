"""What is good: one reward a file. Each is a frozen dataclass that scores pictures against prompts (`flowrl.rl.Reward`)."""

from rewards.aesthetic import Aesthetic
from rewards.brightness import Brightness
from rewards.clip_score import CLIPScore
from rewards.composite import CompositeReward
from rewards.frames import FrameReward
from rewards.geneval import GenEval
from rewards.hpsv2 import HPSv2
from rewards.image_reward import ImageReward
from rewards.jpeg import JpegCompressibility
from rewards.legibility import HeldoutLegibility, Legibility
from rewards.ocr import OCRAccuracy
from rewards.pickscore import PickScore
from rewards.remote import RemoteReward

OWNER = "flowrl"

__all__ = [
    "OWNER",
    "Aesthetic",
    "Brightness",
    "CLIPScore",
    "CompositeReward",
    "FrameReward",
    "GenEval",
    "HPSv2",
    "HeldoutLegibility",
    "ImageReward",
    "JpegCompressibility",
    "Legibility",
    "OCRAccuracy",
    "PickScore",
    "RemoteReward",
]
