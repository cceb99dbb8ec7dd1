import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats

from flowrl.train.evaluation_result import EvaluationResult, evaluation_folder
from flowrl.train.outcomes import Outcome, outcomes, warnings
from flowrl.train.record import RunRecord, read_record
from flowrl.train.report import write_report

IMAGES = 12


class Page(HTMLParser):
    """What a reader can check: texts of cells, exact values, addresses, tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.values, self.addresses, self.tags, self.rows, self.texts = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "poster", "action") if name in given]
        if tag == "data":
            self.values.append(float(given["value"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, text):
        self.texts.append(text.strip())
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += text.strip()

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def result(shift: float, heldout: float, diversity: float = 0.3) -> EvaluationResult:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, IMAGES, generator=generator, dtype=torch.float64)
    own = torch.rand(IMAGES, generator=torch.Generator().manual_seed(int(1000 * shift) + 5), dtype=torch.float64)
    scores = {"legibility": noise[0] + shift + 0.1 * own, "heldout_accuracy": heldout + 0.1 * noise[1] * own}
    monitors = {"diversity": diversity, "edge_density": 0.2, "colour_entropy": 1.5}
    return EvaluationResult(
        index=torch.arange(IMAGES),
        prompts=[f"digit <b>{image % 4}</b>" for image in range(IMAGES)],
        scores=scores,
        reward=scores["legibility"],
        monitors={name: torch.full((IMAGES,), value, dtype=torch.float64) for name, value in monitors.items()},
        images={image: torch.full((3, 8, 8), image / IMAGES) for image in range(4)},
        network_evaluations=40,
    )


def train_line(update: int) -> dict[str, float]:
    return {
        "kind": "train",
        "update": update,
        "reward": 0.125 + update / 64,
        "reward/legibility": 0.125 + update / 64,
        "reward_std": 0.25,
        "reward_spread/step_0": 0.5,
        "reward_spread/step_1": 0.375,
        "ratio_mean": 1.0,
        "ratio_max_dev": 1e-5 * (update + 1),
        "clip_fraction": 0.25,
        "grad_norm": 0.75,
        "lr": 1e-3,
        "loss": 0.0,
        "network_evaluations": 362 * (update + 1),
        "images": 80 * (update + 1),
        "seconds": 2.0 * (update + 1),
        "seconds_rollout": 1.5,
        "seconds_reward": 0.25,
        "seconds_update": 0.125,
    }


def write_run(
    folder: Path, evaluations: dict[int, EvaluationResult], *, updates: int = 4, planned: int = 4, keep_scores: bool = True
) -> Path:
    folder.mkdir(parents=True)
    lines = [train_line(update) for update in range(updates)]
    for update, found in evaluations.items():
        lines.append({"kind": "eval", "update": update, **found.line()})
        if keep_scores:
            found.save(evaluation_folder(folder, update))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"target": "flowrl.train.RLTrainer", "updates": planned, "sampler": {"target": "samplers.SingularStochasticSampler"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "digits", {0: result(0.0, 0.5), 2: result(0.2, 0.7), 4: result(0.4, 0.9)})


def test_the_figures_of_the_page_are_those_of_the_metrics(run):
    page = Page(write_report(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals, last = [line for line in lines if line["kind"] == "eval"], lines[3]
    names = ["eval/legibility", "eval/heldout_accuracy", "diversity", "edge_density", "colour_entropy"]
    expected = [evals[place][name] for name in names for place in (0, -1)]
    assert page.values == [*expected, last["network_evaluations"], last["images"], last["seconds"]]
    assert "1,448" in page.text  # 4 * 362, as a reader sees it
    assert "362 an update" in page.text
    assert "rollout 6.0 s , 75 %" in page.text
    assert "other 0.5 s , 6 %" in page.text


def test_the_intervals_of_the_page_are_paired(run):
    rows = {row[0]: row for row in Page(write_report(run)).rows}
    before, after = (json.loads((evaluation_folder(run, update) / "scores.json").read_text())["scores"] for update in (0, 4))
    for name, shown in (("legibility", "legibilitytrained"), ("heldout_accuracy", "held-out accuracyheld out")):
        test = stats.ttest_rel(after[name], before[name])
        low, high = test.confidence_interval(0.95)
        difference, half = map(float, rows[shown][3].replace("−", "-").split("±"))
        assert difference == pytest.approx((low + high) / 2, abs=10.0 ** -len(str(half).split(".")[1]))
        assert half == pytest.approx((high - low) / 2, rel=0.05)
    assert rows["legibilitytrained"][4] == "100 %"


def test_the_page_needs_nothing_but_itself(run):
    path = write_report(run)
    page = Page(path)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", path.read_text(encoding="utf-8"))


def test_the_pictures_are_those_of_the_run(run):
    page = Page(write_report(run))
    assert [base64.b64decode(address.split(",")[1]) for address in page.addresses] == [(run / "grids" / "before_after.png").read_bytes()]


def test_without_kept_scores_the_first_and_the_last_grid_are_shown_and_intervals_are_independent(tmp_path):
    found = {0: result(0.0, 0.5), 2: result(0.2, 0.7), 4: result(0.4, 0.9)}
    run = write_run(tmp_path / "run", found, keep_scores=False)
    (run / "grids").mkdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            line["grid"] = f"grids/{line['update']}.png"
            (run / line["grid"]).write_bytes(str(line["update"]).encode())
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = Page(write_report(run))
    assert [base64.b64decode(address.split(",")[1]) for address in page.addresses] == [b"0", b"4"]
    row = outcomes(read_record(run))[0]
    assert row.ci95 == pytest.approx(math.hypot(lines[4]["eval/legibility_ci95"], lines[6]["eval/legibility_ci95"]))
    assert row.win_rate is None


def test_every_curve_that_was_logged_is_there(run):
    text = Page(write_report(run)).text
    for title in (
        "Reward in training",
        "Held-out accuracy",
        "Held-out accuracy by cost",
        "Ratio deviation",
        "Diversity within a prompt",
        "Edge density",
        "Colour entropy",
        "Reward spread by step",
        "Clip fraction",
    ):
        assert f" {title} " in text


def test_the_curve_against_cost_uses_the_evaluations_spent_before(run):
    record = read_record(run)
    assert [record.cost_at(update) for update in (0, 1, 2, 4)] == [0, 362, 724, 1448]
    assert "1,448: held-out accuracy" in write_report(run).read_text(encoding="utf-8")


def test_a_run_with_train_lines_only_is_reported(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", {})))
    assert "no evaluation yet" in page.text
    assert "Reward in training" in page.text
    assert page.addresses == []


def test_a_run_with_one_evaluation_only_shows_it_as_before(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", {0: result(0.0, 0.5)}, updates=0)))
    row = next(row for row in page.rows if row[0].startswith("legibility"))
    assert row[2:] == ["–", "–", "–"]


def test_an_interrupted_run_says_so(tmp_path):
    page = Page(write_report(write_run(tmp_path / "run", {0: result(0.0, 0.5)}, updates=3, planned=40)))
    assert "Not finished: 3 of 40 updates." in page.text


def test_a_last_line_that_was_cut_off_is_left_out_and_told(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "update": 4, "rew')
    page = Page(write_report(run))
    assert "The last line of metrics.jsonl (line 8) is cut off and was left out." in page.text
    assert "could not be read" not in page.text
    assert "Finished: 4 updates." in page.text


def test_unreadable_lines_elsewhere_are_counted(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "garbage", "[1]", *lines[1:]]))
    assert "2 lines of metrics.jsonl could not be read and were left out (the first is line 2)." in Page(write_report(run)).text


def test_of_lines_that_repeat_an_update_the_last_counts(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(3) | {"reward": 9.0}) + "\n")
    assert read_record(run).train_series("reward") == ([0, 1, 2, 3], [0.125, 0.140625, 0.15625, 9.0])


def test_values_that_are_not_finite_are_not_drawn(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(4) | {"reward": math.nan, "grad_norm": math.inf}) + "\n")
    assert read_record(run).train_series("reward")[0] == [0, 1, 2, 3]
    assert not re.search(
        r'"[^"]*(nan|inf)\b[^"]*"', re.sub(r"<style>.*</style>", "", write_report(run).read_text("utf-8"), flags=re.DOTALL)
    )


def test_a_missing_config_is_told_and_the_rest_is_there(run):
    (run / "config.yaml").unlink()
    text = Page(write_report(run)).text
    assert "config.yaml is missing or unreadable" in text
    assert "Outcome" in text


def test_the_configuration_is_shown_and_nothing_in_it_is_markup(run):
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"run_dir": "<img src=http://x>"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    page = Page(write_report(run))
    assert "run_dir: <img src=http://x>" in page.text
    assert all(address.startswith("data:") for address in page.addresses)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no run folder"),
        (lambda folder: folder.mkdir(), r"holds no metrics\.jsonl"),
        (lambda folder: (folder.mkdir(), (folder / "metrics.jsonl").write_text('{"kind": "tra')), "holds no complete line yet"),
    ],
    ids=["no folder", "no metrics", "no complete line"],
)
def test_what_is_no_run_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "run")


def hacked(tmp_path, after: EvaluationResult) -> list[str]:
    return warnings(outcomes(read_record(write_run(tmp_path / "run", {0: result(0.0, 0.5), 4: after}))))


def test_a_good_run_raises_no_alarm(tmp_path):
    assert hacked(tmp_path, result(0.4, 0.9)) == []


def test_a_held_out_score_that_falls_while_the_reward_rises_is_an_alarm(tmp_path):
    found = hacked(tmp_path, result(0.4, 0.2))
    assert found == ["The trained reward rose (legibility) while a held-out score fell (heldout_accuracy)."]
    assert "Reward hacking?" in Page(write_report(tmp_path / "run")).text


def test_a_held_out_score_that_falls_with_the_reward_is_none(tmp_path):
    assert hacked(tmp_path, result(-0.4, 0.2)) == []


def test_a_fall_within_its_interval_is_none(tmp_path):
    after = result(0.4, 0.5)
    after.scores["heldout_accuracy"] = after.scores["heldout_accuracy"] - 0.01 + 0.2 * torch.tensor([1.0, -1.0] * (IMAGES // 2))
    assert hacked(tmp_path, after) == []


def test_a_diversity_that_falls_below_half_is_an_alarm(tmp_path):
    assert hacked(tmp_path / "a", result(0.4, 0.9, diversity=0.16)) == []
    assert "fell by 53%" in hacked(tmp_path / "b", result(0.4, 0.9, diversity=0.14))[0]


def test_image_statistics_that_drift_are_an_alarm(tmp_path):
    drifted = result(0.4, 0.9)
    drifted.monitors["edge_density"] = drifted.monitors["edge_density"] * 1.6
    assert "edge density moved by +60%" in hacked(tmp_path, drifted)[0]


def test_a_part_of_weight_zero_is_held_out_unless_it_is_trained_by_its_scale_or_rank():
    weights = {"hps": 1.0, "clip": 0.0, "jpeg": 0.0, "jpeg_rank": 0.5}
    line = {"update": 0, **{f"reward/{part}": 0.1 for part in weights}}
    record = RunRecord(folder=Path(), config={"reward": {"weights": weights}}, train=[line], evals=[], notes=[])
    assert [record.held_out(part) for part in weights] == [False, True, False, False]
    assert replace(record, config={}).trained == [*weights]


def test_falls_below_a_tenth_of_the_scores_spread_are_none_however_certain(tmp_path):
    """The held-out score falls by 0.09 and by 0.11 of its spread over images, on every image alike."""
    for share, alarms in ((0.09, 0), (0.11, 1)):
        after = result(0.4, 0.5)
        before = result(0.0, 0.5).scores["heldout_accuracy"]
        after.scores["heldout_accuracy"] = before - share * before.std()
        for place, kept in enumerate((True, False)):
            run = write_run(tmp_path / f"{share}_{place}", {0: result(0.0, 0.5), 4: after}, keep_scores=kept)
            rows = outcomes(read_record(run))
            assert rows[1].spread == pytest.approx(before.std().item())
            assert len(warnings(rows)) == (alarms if kept else 0)  # unpaired, such a fall is not certain


def test_the_monitor_diversity_is_told_apart_from_a_score_of_that_name():
    names = {row.role: row.label for row in (Outcome(name="diversity", role=role, before=0.1) for role in ("trained", "monitor"))}
    assert names == {"trained": "diversity", "monitor": "pixel diversity"}
