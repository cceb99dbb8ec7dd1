"""What is good: one reward a file. Each is a frozen dataclass that scores pictures against prompts (`flowrl.rl.Reward`)."""

from rewards.brightness import Brightness
from rewards.composite import CompositeReward
from rewards.jpeg import JpegCompressibility
from rewards.legibility import HeldoutLegibility, Legibility
from rewards.ocr import OCRAccuracy
from rewards.remote import RemoteReward

OWNER = "flowrl"

__all__ = ["OWNER", "Brightness", "CompositeReward", "HeldoutLegibility", "JpegCompressibility", "Legibility", "OCRAccuracy", "RemoteReward"]
