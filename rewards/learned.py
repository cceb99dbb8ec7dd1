"""What the rewards with networks share: device and dtype, batches, and rows that cannot be scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from flowrl.rl import RewardBatch
from rewards.pictures import check_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Dtype", "LearnedReward", "device_of"]

Dtype = Literal["float32", "bfloat16", "float16"]


def device_of(setting: str, samples: torch.device | str) -> torch.device:
    """Where a network runs; of the first GPU there is one name only, so that a network is not loaded twice.

    Args:
        setting: ``auto`` is where the samples are.
        samples: Where they are.
    """
    device = torch.device(samples if setting == "auto" else setting)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@dataclass(frozen=True, kw_only=True)
class LearnedReward(ABC):
    """A reward of one part that a network gives; its weights are read at the first call or by :meth:`load`, once per process.

    Attributes:
        device: Where the network runs; ``auto`` is where the samples are.
        dtype: Of the network's weights and activations; features and scores are float32 whatever it is.
        batch: Pictures scored at a time.

    Raises:
        ValueError: If there is no such device, or ``batch`` is not positive.
    """

    device: str = "auto"
    dtype: Dtype = "float32"
    batch: int = 16

    part: ClassVar[str]

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be >= 1, got {self.batch}")
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}") from error

    @property
    def weights(self) -> Mapping[str, float]:
        """The one part."""
        return {self.part: 1.0}

    def load(self, device: torch.device | str = "cpu") -> None:
        """Read the weights now, so that what is missing shows before a long run.

        Args:
            device: Where the samples will be.

        Raises:
            RewardError: If weights are missing or do not fit; the message says where they come from.
        """
        self._network(self._device(device), getattr(torch, self.dtype))

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> RewardBatch:
        """Score pictures; see `flowrl.rl.Reward`. A picture with a non-finite pixel scores NaN.

        Raises:
            ValueError: If the samples are not pictures, or there is not one prompt per picture.
            RewardError: If weights are missing or do not fit.
        """
        check_samples(samples, prompts)
        device = self._device(samples.device)
        network = self._network(device, getattr(torch, self.dtype))
        finite = samples.detach().isfinite().flatten(1).all(1)
        scores = [torch.zeros(0, device=samples.device)]
        with torch.autocast(device.type, enabled=False):  # what the trainer casts must not change a score
            for start in range(0, len(samples), self.batch):
                rows = slice(start, start + self.batch)
                scores.append(self._scores(network, samples[rows].detach().to(device), prompts[rows]).float().to(samples.device))
        return RewardBatch({self.part: torch.where(finite, torch.cat(scores), torch.nan)})

    def _device(self, samples: torch.device | str) -> torch.device:
        return device_of(self.device, samples)

    @abstractmethod
    def _network(self, device: torch.device, dtype: torch.dtype) -> Any:
        """What scores, read once per process."""

    @abstractmethod
    def _scores(self, network: Any, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores of a few pictures, (batch,), where the network is."""
