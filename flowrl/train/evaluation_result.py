"""What an evaluation found, image by image; how two are compared; how one is kept in the run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowrl.train.grids import before_after_grid, from_png, picture_grid, save_png, to_picture
from flowrl.train.paired import PairedDifference, mean_ci95, paired_difference
from flowrl.train.whole import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

__all__ = ["MONITORS", "EvaluationResult", "evaluation_folder"]

MONITORS = ("diversity", "edge_density", "colour_entropy")
"""What is measured beside the scores: see `flowrl.train.monitors`."""

SCORES_FILE = "scores.json"


def evaluation_folder(run_dir: Path, update: int) -> Path:
    """Where a run keeps the evaluation after so many updates."""
    return run_dir / "evaluations" / f"update_{update:06d}"


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """The scores of every image.

    Attributes:
        index: Number of each image, ``(image,)``, ascending.
        prompts: Prompt of each image.
        scores: Name of a reward part -> ``(image,)``, float64.
        reward: Weighted sum of the trained reward's parts, ``(image,)``.
        monitors: ``diversity`` (of the image's prompt; NaN if it has one image), ``edge_density``, ``colour_entropy``; ``(image,)`` each.
        images: Number of an image -> its picture ``(3, height, width)`` in [0, 1], for the first images only.
        network_evaluations: States that the network evaluated.
    """

    index: Tensor
    prompts: list[str]
    scores: dict[str, Tensor]
    reward: Tensor
    monitors: dict[str, Tensor]
    images: dict[int, Tensor]
    network_evaluations: int

    @staticmethod
    def merge(parts: Sequence[EvaluationResult]) -> EvaluationResult:
        """Join the shares of several processes or blocks; an image that two of them did counts once.

        Args:
            parts: At least one.
        """
        index = torch.cat([part.index for part in parts])
        row_of = {image: row for row, image in enumerate(index.tolist())}
        rows = torch.tensor([row_of[image] for image in sorted(row_of)])
        prompts = [prompt for part in parts for prompt in part.prompts]
        images = {image: picture for part in parts for image, picture in part.images.items()}
        return EvaluationResult(
            index=index[rows],
            prompts=[prompts[row] for row in rows.tolist()],
            scores={name: torch.cat([part.scores[name] for part in parts])[rows] for name in parts[0].scores},
            reward=torch.cat([part.reward for part in parts])[rows],
            monitors={name: torch.cat([part.monitors[name] for part in parts])[rows] for name in parts[0].monitors},
            images=dict(sorted(images.items())),
            network_evaluations=sum(part.network_evaluations for part in parts),
        )

    def line(self) -> dict[str, float]:
        """The fields of an ``eval`` line in ``metrics.jsonl``.

        ``eval/<part>`` and ``eval/<part>_ci95`` (half-width) for every part, the means of the monitors, and ``eval_images``.
        """
        fields: dict[str, float] = {}
        for name, values in self.scores.items():
            fields[f"eval/{name}"], fields[f"eval/{name}_ci95"] = mean_ci95(values)
        means = {name: values.mean().item() for name, values in self.monitors.items() if not values.isnan().any()}
        return fields | means | {"eval_images": len(self.index)}

    def compare(self, after: EvaluationResult) -> dict[str, PairedDifference]:
        """Compare with a second model's result, part by part, image by image.

        Raises:
            ValueError: If the two are of other prompts or images.
        """
        self._check_same_images(after)
        return {name: paired_difference(self.scores[name], after.scores[name]) for name in self.scores if name in after.scores}

    def grid(self, title: str = "") -> Image.Image:
        """Draw the kept pictures with prompt and reward.

        Args:
            title: Written above.

        Raises:
            ValueError: If no picture was kept.
        """
        return picture_grid(*self._pictures(), title=title)

    def grid_against(self, before: EvaluationResult, title: str = "") -> Image.Image:
        """Draw the kept pictures beside another model's.

        Args:
            before: The other model's result, on the same images.
            title: Written above.

        Raises:
            ValueError: If the two are of other prompts or images, or no picture was kept.
        """
        self._check_same_images(before)
        pictures, prompts, rewards = before._pictures()
        after_pictures, _, after_rewards = self._pictures()
        return before_after_grid(pictures, after_pictures, prompts, rewards, after_rewards, title=title)

    def save(self, folder: Path) -> None:
        """Write ``scores.json`` and the kept pictures as PNG, 8 bits a channel; what was there before is replaced.

        Args:
            folder: Created if need be.
        """
        for image, picture in self.images.items():
            save_png(to_picture(picture), folder / f"{image:04d}.png")
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "index": self.index.tolist(),
            "prompts": self.prompts,
            "scores": {name: values.tolist() for name, values in self.scores.items()},
            "reward": self.reward.tolist(),
            "monitors": {name: values.tolist() for name, values in self.monitors.items()},
            "network_evaluations": self.network_evaluations,
            "images": list(self.images),
        }
        write_whole(folder / SCORES_FILE, json.dumps(content))

    @staticmethod
    def load(folder: Path) -> EvaluationResult:
        """Read what `save` wrote.

        Raises:
            ValueError: If the folder holds no complete evaluation.
        """
        try:
            content: dict[str, Any] = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
            return EvaluationResult(
                index=torch.tensor(content["index"]),
                prompts=content["prompts"],
                scores={name: torch.tensor(values, dtype=torch.float64) for name, values in content["scores"].items()},
                reward=torch.tensor(content["reward"], dtype=torch.float64),
                monitors={name: torch.tensor(values, dtype=torch.float64) for name, values in content["monitors"].items()},
                images={image: from_png(folder / f"{image:04d}.png") for image in content["images"]},
                network_evaluations=content["network_evaluations"],
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no complete evaluation ({error}); run it again with: flowrl evaluate RUN") from error

    def _check_same_images(self, other: EvaluationResult) -> None:
        if self.prompts != other.prompts or self.index.tolist() != other.index.tolist():
            raise ValueError("two evaluations can only be compared on the same prompts and images; run both with one Evaluation")

    def _pictures(self) -> tuple[Tensor, list[str], Tensor]:
        if not self.images:
            raise ValueError("this evaluation kept no picture; set keep to 1 or more")
        row_of = {image: row for row, image in enumerate(self.index.tolist())}
        rows = [row_of[image] for image in self.images]
        return torch.stack(list(self.images.values())), [self.prompts[row] for row in rows], self.reward[rows]
