"""What is good: one reward a file. Each is a frozen dataclass that scores pictures against prompts (`flowrl.rl.Reward`)."""

from rewards.aesthetic import Aesthetic
from rewards.brightness import Brightness
from rewards.chat import ChatEndpoint
from rewards.clip_score import CLIPScore
from rewards.comparison import VLMComparison
from rewards.composite import CompositeReward
from rewards.diversity import ClipFeatures, Diversity, PixelFeatures
from rewards.frames import FrameReward
from rewards.geneval import GenEval
from rewards.hpsv2 import HPSv2
from rewards.image_reward import ImageReward
from rewards.jpeg import JpegCompressibility
from rewards.judge import AspectMarks, FinalMark, Marks, VLMJudge
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
    "AspectMarks",
    "BatchScale",
    "Brightness",
    "CLIPScore",
    "ChatEndpoint",
    "ClipFeatures",
    "CompositeReward",
    "Diversity",
    "FinalMark",
    "FixedScale",
    "FrameReward",
    "GenEval",
    "GroupScale",
    "HPSv2",
    "HeldoutLegibility",
    "ImageReward",
    "JpegCompressibility",
    "Legibility",
    "Marks",
    "OCRAccuracy",
    "PickScore",
    "PixelFeatures",
    "RemoteReward",
    "RunningScale",
    "VLMComparison",
    "VLMJudge",
    "WithinGroupRank",
]
