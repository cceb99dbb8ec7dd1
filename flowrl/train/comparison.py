"""Several checkpoints against the base: drawn block by block, kept on disk, compared picture by picture."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.errors import ConfigError
from flowrl.rl import facts_of
from flowrl.train.evaluation import Evaluation
from flowrl.train.evaluation_result import EvaluationResult
from flowrl.train.grids import save_png
from flowrl.train.outcomes import Outcome, compared, warnings
from flowrl.train.page import png_address, write_page
from flowrl.train.paired import mean_ci95, paired_difference
from flowrl.train.whole import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrl.models import ImageModel

__all__ = ["BASE", "Comparison", "Subject", "weights_digest"]

BASE = "base"
"""Name of the weights from before training."""

RESULTS, REPORT, SETTINGS, BLOCKS = "results.json", "report.html", "settings.json", "blocks"
CATEGORIES = ("category", "tag")  # facts of a prompt by which scores are also told apart


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Weights to evaluate.

    Attributes:
        name: Its folder and its column.
        weights: Where they were saved; None for those from before training.
    """

    name: str
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An evaluation of several weights, on the same prompts and noise, in a folder that a stopped one goes on from.

    Attributes:
        folder: Where everything is written.
        evaluation: Prompts, noise, sampler and rewards.
        subjects: The base first.
        trained: Names of the reward parts in training; the others are held out.
    """

    folder: Path
    evaluation: Evaluation
    subjects: Sequence[Subject]
    trained: Sequence[str]

    def open(self, settings: dict[str, Any], *, restart: bool = False) -> None:
        """Make the folder, or make sure that what it holds is of the same evaluation.

        Args:
            settings: All that decides the numbers; written down.
            restart: Forget what is there.

        Raises:
            ConfigError: If it holds another evaluation's results.
        """
        path = self.folder / SETTINGS
        if restart and self.folder.is_dir():
            shutil.rmtree(self.folder)
        settings = json.loads(json.dumps(settings, default=str))
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if other := [name for name in {*there, *settings} if there.get(name) != settings.get(name)]:
                raise ConfigError(
                    f"{self.folder} holds an evaluation with another {' and '.join(sorted(other))}; choose another folder with --out, "
                    "or start it anew with --restart"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=2) + "\n")

    def missing(self, subject: Subject) -> list[int]:
        """Numbers of the blocks that are still to be drawn."""
        if self._whole(subject) is not None:
            return []
        return [number for number in range(len(self.evaluation.blocks())) if _read(self._block(subject, number)) is None]

    def draw(self, model: ImageModel, subject: Subject, blocks: Sequence[int]) -> Iterator[int]:
        """Draw, score and keep blocks, one at a time.

        Args:
            model: With the subject's weights.
            subject: Whose they are.
            blocks: Numbers of the blocks.

        Yields:
            The number of pictures of each block once it is kept.
        """
        images = self.evaluation.blocks()
        for number in blocks:
            self.evaluation.block(model, images[number]).save(self._block(subject, number))
            yield len(images[number])

    def finish(self, facts: dict[str, Any]) -> dict[str, list[Outcome]]:
        """Join the blocks, write tables, grids and the page.

        Args:
            facts: Told at the head of the results.

        Returns:
            The rows of each subject's table against the base; the base's own where it is alone.
        """
        results = {subject.name: self._join(subject) for subject in self.subjects}
        base, *others = results
        tables = {name: compared(results[base], results[name], self.trained) for name in others} or {
            base: _alone(results[base], self.trained)
        }
        grids = self._grids(results)
        content = facts | {
            "interval": "95 %, paired t over images",
            "models": {name: result.line() for name, result in results.items()},
            "against_base": {name: [asdict(row) for row in rows] for name, rows in tables.items() if name != base},
            "categories": self._categories(results),
        }
        write_whole(self.folder / RESULTS, json.dumps(content, indent=2) + "\n")
        context = {
            "name": self.folder.name,
            "facts": facts,
            "tables": tables,
            "warnings": {name: warnings(rows) for name, rows in tables.items()},
            "categories": content["categories"],
            "pictures": [(caption, png_address(path)) for caption, path in grids],
        }
        write_page(self.folder / REPORT, Path(__file__).with_name("comparison.html.j2"), context)
        shutil.rmtree(self.folder / BLOCKS, ignore_errors=True)
        return tables

    def _block(self, subject: Subject, number: int) -> Path:
        return self.folder / BLOCKS / subject.name / f"{number:05d}"

    def _whole(self, subject: Subject) -> EvaluationResult | None:
        result = _read(self.folder / subject.name)
        return result if result is not None and len(result.index) == self.evaluation.images else None

    def _join(self, subject: Subject) -> EvaluationResult:
        whole = self._whole(subject)
        if whole is None:
            numbers = range(len(self.evaluation.blocks()))
            whole = EvaluationResult.merge([EvaluationResult.load(self._block(subject, number)) for number in numbers])
            whole.save(self.folder / subject.name)
        return whole

    def _grids(self, results: dict[str, EvaluationResult]) -> list[tuple[str, Path]]:
        base, *others = results
        if not results[base].images:
            return []
        if not others:
            return [("The base.", save_png(results[base].grid("The base"), self.folder / f"{base}.png"))]
        drawn = []
        for name in others:
            title = f"The base and {name}: same prompts, same noise"
            drawn.append((title + ".", save_png(results[name].grid_against(results[base], title), self.folder / f"{base}_{name}.png")))
        return drawn

    def _categories(self, results: dict[str, EvaluationResult]) -> dict[str, dict[str, dict[str, Any]]]:
        """Category to score to model: mean over its images, and for all but the base the paired change with its 95 % half-width."""
        names = [_category(text) for text in self.evaluation.texts]
        if len(set(names)) == 1:
            return {}
        base, count = next(iter(results.values())), len(names)
        owners = [names[image % count] for image in base.index.tolist()]
        rows = {name: [row for row, owner in enumerate(owners) if owner == name] for name in dict.fromkeys(names)}
        return {
            category: {part: {name: _cell(base, result, part, of) for name, result in results.items()} for part in base.scores}
            for category, of in rows.items()
            if len(of) > 1
        }


def weights_digest(folder: Path) -> str:
    """SHA-256 of the safetensors below a folder, names included."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _cell(base: EvaluationResult, result: EvaluationResult, part: str, rows: list[int]) -> dict[str, float]:
    if result is base:
        mean, ci95 = mean_ci95(base.scores[part][rows])
        return {"mean": mean, "ci95": ci95}
    pair = paired_difference(base.scores[part][rows], result.scores[part][rows])
    return {"mean": pair.after, "change": pair.difference, "change_ci95": pair.ci95}


def _category(prompt: str) -> str:
    facts = facts_of(prompt)
    return next((str(facts[name]) for name in CATEGORIES if name in facts), "")


def _alone(result: EvaluationResult, trained: Sequence[str]) -> list[Outcome]:
    rows = [(name, "trained" if name in trained else "held out", values) for name, values in result.scores.items()]
    rows += [(name, "monitor", values) for name, values in result.monitors.items() if not values.isnan().any()]
    return [Outcome(name=name, role=role, before=values.mean().item()) for name, role, values in rows]  # type: ignore[arg-type]


def _read(folder: Path) -> EvaluationResult | None:
    try:
        return EvaluationResult.load(folder)
    except ValueError:
        return None
