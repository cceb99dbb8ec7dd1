"""The page about the training of a gate, and the picture of its schedule."""

import json
import re

import numpy as np
import pytest
import yaml

from flowrl.cli.main import main
from robot.gating.heatmap import HEATMAP_FILE, write_heatmap
from robot.gating.report import REPORT_FILE, write_report

SHARED = [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
LEARNED = [[1.0, 1.0], [0.81, 0.37], [0.62, 0.0]]


def train_line(update, **fields):
    given = {
        "kind": "train", "update": update, "phase": "rollout", "reward": 0.5, "reward/success": 0.25, "reward/max_reward": 0.75,
        "success": 0.25, "informative": 0.75, "crashed": 0.0, "entropy": 0.4, "ratio_max_dev": 0.1, "clip_fraction": 0.01,
        "multiplier": [0.6, 1.3], "final_time": [0.5, 0.0], "times": LEARNED, "seconds": 90.0, "episodes": 8 * (update + 1),
        "control_steps": 1234, "network_evaluations": 6170.0, "chunks": 617, "evaluations/video_per_chunk": 5.0,
        "evaluations/action_per_chunk": 4.0,
    }  # fmt: skip
    return given | fields


def eval_line(update, **fields):
    given = {
        "kind": "eval", "update": update, "episodes": 200, "success": 0.42, "success_95": [0.35, 0.49], "shared/success": 0.365,
        "shared/success_95": [0.3, 0.43], "difference": 0.055, "difference_95": [0.021, 0.089], "mcnemar_p": 0.0021, "only_first": 20,
        "only_second": 9, "crashed": 0, "times": LEARNED, "final_time": LEARNED[-1], "max_reward": 0.86, "shared/max_reward": 0.82,
        "max_reward_difference": 0.04, "max_reward_difference_ci95": 0.014,
    }  # fmt: skip
    return given | fields


def run_folder(folder, lines, **config):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    given = {"target": "robot.gating.GateTraining", "updates": 2, "hold": "episode", "gate": {"target": "robot.NoiseGateConfig"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(given | config), encoding="utf-8")
    return folder


def page_of(folder):
    write_report(folder)
    return (folder / REPORT_FILE).read_text(encoding="utf-8")


def test_the_page_shows_before_and_after_the_schedule_and_the_curves(tmp_path):
    first = eval_line(0, success=0.365, difference=0.0, difference_95=[-0.01, 0.01], mcnemar_p=1.0, times=SHARED, final_time=SHARED[-1])
    page = page_of(run_folder(tmp_path / "run", [first, train_line(0), train_line(1), eval_line(2)]))
    assert "Success 42.0 % with the gate, 36.5 % with the shared schedule, on 200 paired episodes" in page
    assert '<td class="up">+5.5 (+2.1 to +8.9)</td>' in page
    assert '<td class="">+0.0 (-1.0 to +1.0)</td>' in page
    assert "+0.040 ± 0.014" in page
    assert "<code>0.62 0.00</code>" in page
    assert "Finished: 2 updates" in page
    assert re.findall(r"<tr>\s*<td>(.*?)</td>", page) == ["0", "2"]
    assert "data:image/png;base64," in page
    for title in (
        "Success",
        "Reward in training",
        "Final time of every latent",
        "Multiplier of every latent",
        "Informative groups",
        "Entropy",
    ):
        assert f"<h3>{title}</h3>" in page
    assert "5 + 4" in page
    assert "Only" not in page
    assert (tmp_path / "run" / HEATMAP_FILE).read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_groups_tell_little_is_warned_about(tmp_path):
    lines = [train_line(0, informative=0.25), train_line(1, informative=0.125, crashed=0.25)]
    page = page_of(run_folder(tmp_path / "run", lines))
    assert "Only 19% of the groups had members that fared differently" in page
    assert "12.5% of the training episodes crashed" in page
    assert "paired episodes" not in page  # nothing was evaluated


def test_a_warm_up_counts_among_the_updates_and_not_among_the_rollouts(tmp_path):
    warm = train_line(0, phase="warm_up", informative=0.0)
    for name in ("success", "crashed"):
        warm.pop(name)
    page = page_of(run_folder(tmp_path / "run", [warm, train_line(1)], warm_up={"updates": 1}))
    assert "Not finished: 2 of 3 updates" in page
    assert "Only" not in page


def test_the_command_line_knows_the_page_of_a_gate(tmp_path, capsys):
    folder = run_folder(tmp_path / "run", [train_line(0)])
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / REPORT_FILE)
    assert "flowrl report · noise gate" in (folder / REPORT_FILE).read_text(encoding="utf-8")


def test_the_heatmap_shows_latents_from_above_and_noise_bright(tmp_path):
    from matplotlib import colormaps
    from matplotlib.image import imread

    path = write_heatmap(tmp_path / "schedule.png", {"one": LEARNED}, latents=("+4", "+8"))
    seen = {tuple(colour) for colour in (imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    for time in (1.0, 0.81, 0.62, 0.37, 0.0):
        wanted = np.round(np.array(colormaps["cividis"](time)[:3]) * 255).astype(int)
        assert any(np.abs(wanted - np.array(colour)).max() <= 1 for colour in seen)


@pytest.mark.parametrize("schedules", [{}, {"a": SHARED, "b": [[1.0], [0.0]]}, {"a": [1.0, 0.0]}])
def test_schedules_of_other_shapes_are_refused(tmp_path, schedules):
    with pytest.raises(ValueError, match=r"times \(step \+ 1, latent\) of one shape"):
        write_heatmap(tmp_path / "schedule.png", schedules)
