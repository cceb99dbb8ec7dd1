"""Drawing pictures: no reward is in the way unless it is asked for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowrl.cli.main import main

STEPS = "evaluation.sampler.grid.steps=2"
REWARD = """
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NeedsFacts:
    needs_groups = True

    @property
    def weights(self):
        return {"count": 1.0}

    def check_prompts(self, prompts):
        raise ValueError("no facts")

    def __call__(self, samples, prompts, groups):
        raise AttributeError("a plain text has no facts")
"""


@dataclass
class Drawn:
    """Draws with ``flowrl sample`` into a folder."""

    folder: Path

    def __call__(self, *arguments: str, name: str = "grid") -> np.ndarray | None:
        out = self.folder / f"{name}.png"
        given = ["sample", "image/digits_g2rpo", "--prompt", "seven", "--prompt", "a new one", STEPS, *arguments, "--out", str(out)]
        return np.asarray(Image.open(out)) if main(given) == 0 else None


@pytest.fixture
def drawn(tmp_path) -> Drawn:
    return Drawn(tmp_path)


def test_pictures_are_drawn_without_asking_the_reward_and_with_it_only_when_told_to(drawn, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    reward = f"reward.target={tmp_path / 'mine.py'}:NeedsFacts"
    assert drawn(reward) is not None
    assert drawn(reward, "--score", "--images", "2") is None
    assert "no facts" in capsys.readouterr().err


def test_scores_add_a_line_below_the_same_pictures(drawn):
    plain, scored = drawn("--images", "2"), drawn("--images", "2", "--score")
    assert scored.shape[0] > plain.shape[0]
    assert scored.shape[1] == plain.shape[1]
    rows = slice(50, 50 + 112)  # the pictures, below the title
    assert np.array_equal(plain[rows], scored[rows])


def test_overrides_change_what_is_drawn(drawn):
    one, other = drawn(), drawn("evaluation.sampler.grid.steps=5", name="other")
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


def test_no_picture_at_all_is_refused(drawn, capsys):
    assert drawn("--images", "0") is None
    assert "--images must be at least 1, got 0" in capsys.readouterr().err
