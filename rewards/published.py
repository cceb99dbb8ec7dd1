"""What is published where: the weights and tokenizers of the learned rewards, and how to get them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AESTHETIC",
    "BERT_TOKENIZER",
    "CLIP_TOKENIZER",
    "CLIP_VIT_H14",
    "CLIP_VIT_L14",
    "HPS_V2_0",
    "HPS_V2_1",
    "IMAGE_REWARD",
    "PICKSCORE",
    "Published",
]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published set of weights.

    Attributes:
        name: What they are.
        repository: Their id on the Hugging Face hub.
        file: The one file that is needed; empty if the whole repository is.
        gigabytes: Size of what is needed, 1e9 bytes.
        parameters: Of the networks, for plans of memory.
        note: Anything else a user must know, one sentence, or empty.
    """

    name: str
    repository: str
    file: str = ""
    gigabytes: float
    parameters: int
    note: str = ""

    @property
    def checkpoint(self) -> str:
        """As a checkpoint is named in a config: ``owner/name`` or ``owner/name:file``."""
        return f"{self.repository}:{self.file}" if self.file else self.repository

    @property
    def advice(self) -> str:
        """Where the weights are and how to get them, for messages and help."""
        folder = f"weights/{self.repository.rpartition('/')[2]}"
        what = f"{self.file} of {self.repository}" if self.file else self.repository
        command = " ".join(filter(None, ["hf download", self.repository, self.file, "--local-dir", folder]))
        path = f"{folder}/{self.file}" if self.file else folder
        return (
            f"{self.name} is {what} on the Hugging Face hub ({self.gigabytes:g} GB) and is fetched on first use; without a connection run "
            f"`{command}` where there is one, copy it and name it by its path: {path}{'. ' if self.note else ''}{self.note}"
        )


HPS_V2_0 = Published(name="HPSv2.0", repository="xswu/HPSv2", file="HPS_v2_compressed.pt", gigabytes=3.94, parameters=986_109_441)
HPS_V2_1 = Published(name="HPSv2.1", repository="xswu/HPSv2", file="HPS_v2.1_compressed.pt", gigabytes=3.94, parameters=986_109_441)
CLIP_VIT_L14 = Published(name="CLIP ViT-L/14", repository="openai/clip-vit-large-patch14", gigabytes=1.71, parameters=427_616_513)
CLIP_VIT_H14 = Published(name="CLIP ViT-H/14", repository="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", gigabytes=3.94, parameters=986_109_441)
CLIP_TOKENIZER = Published(
    name="CLIP's tokenizer",
    repository=CLIP_VIT_H14.repository,
    gigabytes=0.004,
    parameters=0,
    note="Only its tokenizer files are needed; the folder `tokenizer` of a Stable Diffusion or FLUX.1 pipeline holds the same",
)
PICKSCORE = Published(name="PickScore", repository="yuvalkirstain/PickScore_v1", gigabytes=3.94, parameters=986_109_441)
AESTHETIC = Published(
    name="the LAION aesthetic predictor",
    repository="trl-lib/ddpo-aesthetic-predictor",
    file="aesthetic-model.pth",
    gigabytes=0.004,
    parameters=927_969,
    note=(
        "The original is sac+logos+ava1-l14-linearMSE.pth of the repository christophschuhmann/improved-aesthetic-predictor on GitHub, "
        "SHA-256 21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
    ),
)
IMAGE_REWARD = Published(name="ImageReward", repository="THUDM/ImageReward", file="ImageReward.pt", gigabytes=1.79, parameters=446_206_689)
BERT_TOKENIZER = Published(
    name="BERT's tokenizer",
    repository="google-bert/bert-base-uncased",
    gigabytes=0.001,
    parameters=0,
    note="Only its tokenizer files are needed (vocab.txt)",
)
