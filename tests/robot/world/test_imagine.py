"""Strips of imagined frames beside real ones."""

import numpy as np
import pytest
import torch
from wams import job

from flowrl.train.grids import from_png
from robot.demonstrations import Episode
from robot.learning import TwoWays, Windows
from robot.learning.encoders import SensorStats
from robot.normalise import NormStats
from robot.types import ActionSpec
from robot.world import (
    Imagined,
    MaskedSchedule,
    MixtureOfTransformers,
    StateFrames,
    Tasks,
    WorldRecipe,
    imagine_episode,
    imagine_windows,
)
from robot.world.imagine import picture_rows

RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
DOT = (0, 114, 178)  # of the first sensor


def plain(*colours, side=112):
    """Pictures of one colour each, ``(picture, 3, side, side)`` in [0, 1]."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, side, side) / 255


def episode(length=10):
    steps = np.arange(length, dtype=np.float32)
    return Episode(
        observations={"agent": np.stack([steps, 2 * steps], 1), "keypoints": np.stack([np.stack([steps, steps], 1)] * 2, 1)},
        actions=steps[:, None],
        rewards=steps,
        dones=steps < 0,
        success=True,
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    low, high = torch.zeros(2), torch.full((2,), 20.0)
    recipe = WorldRecipe(
        latents=StateFrames(vectors=("agent",), keypoints=("keypoints",)),
        network=MixtureOfTransformers(layers=1, video_width=8, action_width=8, heads=1, head_width=4),
        encoder=None,
        sensors=(("agent", (2,)), ("keypoints", (2, 2))),
        action=ActionSpec(names=("x",), control_rate_hz=10),
        frames=3,
        stride=2,
        observed=1,
        horizon=4,
        execute=2,
    )
    stats = {"agent": SensorStats(shape=(2,), low=low, high=high)}
    stats["keypoints"] = SensorStats(shape=(2, 2), low=low.expand(2, 2), high=high.expand(2, 2))
    return recipe.model(recipe.build(stats), NormStats(torch.zeros(1), torch.ones(1)))


def test_rows_of_pictures_lie_where_they_belong():
    drawn = picture_rows({"real": plain(RED, GREEN), "back": plain(GREEN, BLUE)})
    width, height = (size // 2 for size in (drawn.width - 76, drawn.height - 4))
    centres = [[drawn.getpixel((76 + width * column + 56, height * row + 56)) for column in range(2)] for row in range(2)]
    assert centres == [[RED, GREEN], [GREEN, BLUE]]


def test_a_strip_shows_what_was_seen_then_what_came_above_what_was_imagined():
    strip = Imagined(
        seen={"image": plain(RED)[None]},
        real={"image": plain(GREEN, GREEN)[None]},
        imagined={"image": plain(BLUE, RED)[None]},
        times=torch.zeros(1, 2),
        stride=4,
    ).picture()
    columns, rows = ([76 + 116 * place + 56 for place in range(3)], [strip.height - 116 * 2 + 56, strip.height - 60])
    assert [[strip.getpixel((x, y)) for x in columns] for y in rows] == [[RED, GREEN, GREEN], [RED, BLUE, RED]]
    assert strip.size == (76 + 3 * 116, 2 * 116 + 22)


def test_points_are_drawn_to_one_scale_downwards_with_the_real_ones_as_rings():
    """Real points (0, 0), (10, 10) set a square of 11.6 from −0.8; imagined (10, 0) lies at its upper right."""
    seen, real, imagined = (torch.tensor(points)[None, None] for points in ([0.0, 0.0], [10.0, 10.0], [10.0, 0.0]))
    strip = Imagined(seen={"agent": seen}, real={"agent": real}, imagined={"agent": imagined}, times=torch.zeros(1, 1), stride=1).picture()
    top, across = strip.height - 2 * 148, 148
    low, high = round(0.8 / 11.6 * 144), round(10.8 / 11.6 * 144)
    assert strip.getpixel((76 + low, top + low)) == DOT
    assert strip.getpixel((76 + across + high, top + high)) == DOT
    assert strip.getpixel((76 + across + high, top + 148 + low)) == DOT
    ring = strip.getpixel((76 + across + high, top + 148 + high - 4))
    assert ring not in {DOT, (255, 255, 255)}
    assert strip.getpixel((76 + across + high, top + 148 + high)) == (255, 255, 255)


def test_what_a_model_imagines_of_an_episode_lies_beside_the_frames_a_stride_apart(model):
    found = imagine_episode(model, episode(), steps=(0, 7), generator=torch.Generator().manual_seed(1))
    assert found.real["agent"][..., 0].tolist() == [[2, 4, 6], [9, 9, 9]]
    assert found.seen["agent"][..., 0].tolist() == [[0], [7]]
    assert found.imagined["keypoints"].shape == (2, 3, 2, 2)
    assert torch.equal(found.times, torch.zeros(2, 3, dtype=torch.float64))
    assert found.picture().height == 4 * 148 + 22


def test_imagined_frames_are_the_policys_own(model):
    windows = Windows.of([episode()], model.sensors, horizon=4, history=1, first=0, ahead=(2, 4, 6))
    rows = torch.tensor([3])
    found = imagine_windows(model, windows, rows, torch.Generator().manual_seed(1))
    state = model.begin(windows.observation(rows), torch.Generator().manual_seed(1))
    for _ in range(model.schedule.steps):
        state.advance(*model.schedule.next(state))
    torch.testing.assert_close(found.imagined["agent"], state.latents[..., 0, :2] * 10 + 10)


def test_frames_left_as_noise_say_so(model):
    masked = model.with_schedule(MaskedSchedule(steps=2).build(3))
    found = imagine_episode(masked, episode(), generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.times, torch.ones(1, 3, dtype=torch.float64))
    shown = [found.picture(), Imagined(**{**vars(found), "times": torch.zeros(1, 3)}).picture()]
    assert shown[0].size == shown[1].size
    assert shown[0].crop((76, 0, shown[0].width, 20)).tobytes() != shown[1].crop((76, 0, shown[0].width, 20)).tobytes()


@pytest.mark.parametrize("steps", [(10,), (-1,), ()])
def test_steps_outside_the_episode_are_refused(model, steps):
    with pytest.raises(ValueError, match="an episode of 10 control steps has steps 0 to 9"):
        imagine_episode(model, episode(), steps=steps)


def test_sensors_that_have_no_place_cannot_be_drawn():
    frames = {"joints": torch.zeros(1, 1, 7)}
    with pytest.raises(ValueError, match=r"only pictures, keypoints and vectors of two or three numbers can be drawn, .*'joints': \(7,\)"):
        Imagined(seen=frames, real=frames, imagined=frames, times=torch.zeros(1, 1), stride=1).picture()


def test_training_leaves_a_strip_of_held_out_frames_and_shows_it_in_the_report(tmp_path, quick_runs):
    summary = job(tmp_path / "run", demonstrations=TwoWays(episodes=8), latents=StateFrames(keypoints=("keypoints",)), steps=2).run()
    drawn = from_png(tmp_path / "run" / "imagined.png")
    assert drawn.shape[1:] == (3 * 2 * 148 + 22, 76 + 3 * 148)
    assert "data:image/png;base64" in summary.report.read_text(encoding="utf-8")


def test_a_strip_is_drawn_of_the_first_task_and_none_of_bare_numbers(tmp_path):
    tasks = Tasks(tasks={"one": TwoWays(episodes=6), "two": TwoWays(episodes=6, seed=1)})
    for name, latents in (("points", StateFrames(keypoints=("keypoints",))), ("numbers", StateFrames(vectors=("state",)))):
        lesson = job(tmp_path / name, demonstrations=tasks, latents=latents, validation_share=0.5).lesson()
        module = lesson.begin(torch.device("cpu"))
        (tmp_path / name).mkdir()
        assert "frame_error" in lesson.validate(module)
        assert module.training
    assert [path.parent.name for path in tmp_path.rglob("*.png")] == ["points"]
