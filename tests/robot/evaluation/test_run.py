"""A rollout's folder: what is in it, going on, comparing, filming."""

import hashlib
import json
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest
from tiny_rollouts import ReachSource, SteerSource

from flowrl.errors import CheckpointError, ConfigError
from robot.evaluation import Rollout, read_run
from robot.evaluation.log import EpisodeLog
from robot.evaluation.provenance import checkpoint_hashes, sha256_of
from robot.gpc import Composition, MemberConfig
from robot.learning import PolicyFile
from robot.types import ActionSpec

SEEDS = range(20)


def rollout(tmp_path, **changes):
    settings = {"env": ReachSource({}), "policy": SteerSource(), "run_dir": tmp_path / "run", "rows": 4, "videos": 0} | changes
    return Rollout(**settings)


def same(results):
    return sorted((replace(result, latency_s={}) for result in results), key=lambda result: result.key)


def interrupt_after(monkeypatch, episodes):
    """Ctrl-C while an episode is being written."""
    write = EpisodeLog.write

    def stop(log, result, seconds):
        if len(log.results) == episodes:
            raise KeyboardInterrupt
        write(log, result, seconds)

    monkeypatch.setattr(EpisodeLog, "write", stop)


def test_the_summary_counts_what_the_episodes_say(tmp_path):
    summary = rollout(tmp_path, env=ReachSource({4: "raise"}, stop_on_success=False)).run(SEEDS)
    lines = [json.loads(line) for line in (tmp_path / "run/episodes.jsonl").read_text(encoding="utf-8").splitlines()]
    written = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    arm = written["arms"][0]
    successes = sum(line["success"] for line in lines)
    assert 0 < successes < 20
    assert [line["seed"] for line in sorted(lines, key=lambda line: line["seed"])] == list(SEEDS)
    assert (arm["episodes"], arm["successes"], arm["crashed"], arm["truncated"]) == (20, successes, 1, 19)
    assert arm["successes_at_end"] == sum(line["success_at_end"] for line in lines)
    wilson = binomtest(successes, 20).proportion_ci(method="wilson")
    assert arm["wilson_95"] == pytest.approx([wilson.low, wilson.high])
    assert arm["mean_return"] == pytest.approx(np.mean([line["return"] for line in lines]))
    assert arm["mean_length"] == pytest.approx((19 * 6 + 1) / 20)
    assert list(arm["latency_s"]) == ["steer"]
    assert written["finished"] is True
    assert written["wall_time_s"] == pytest.approx(max(line["seconds"] for line in lines), abs=1e-2)
    assert written["control_steps_per_s"] == pytest.approx((19 * 6 + 1) / written["wall_time_s"])
    assert written["env"] == "reach"
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8")) == written["config"]
    assert summary.content == written


@pytest.mark.parametrize("torn", ["", '{"arm": "policy", "seed": 19, "succ'], ids=["between lines", "within a line"])
def test_an_interrupted_run_goes_on_to_what_an_uninterrupted_one_finds(tmp_path, monkeypatch, torn):
    whole = rollout(tmp_path, run_dir=tmp_path / "whole").run(SEEDS)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            rollout(tmp_path).run(SEEDS)
    folder = tmp_path / "run"
    half = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (half["finished"], half["arms"][0]["episodes"]) == (False, 7)
    assert "Not finished" in (folder / "report.html").read_text(encoding="utf-8")
    kept = (folder / "episodes.jsonl").read_text(encoding="utf-8")
    (folder / "episodes.jsonl").write_text(kept + torn, encoding="utf-8")
    resumed = rollout(tmp_path).run(SEEDS, resume=True)
    assert same(resumed.results) == same(whole.results)
    assert (folder / "episodes.jsonl").read_text(encoding="utf-8").startswith(kept)
    assert same(read_run(folder)[0]) == same(whole.results)
    assert resumed.content["wall_time_s"] >= half["wall_time_s"]


def test_more_seeds_extend_a_run_and_none_are_run_twice(tmp_path, monkeypatch):
    rollout(tmp_path).run(range(6))
    assert len(rollout(tmp_path).run(range(10), resume=True).results) == 10
    interrupt_after(monkeypatch, 10)
    assert len(rollout(tmp_path).run(range(10), resume=True).results) == 10


def test_a_folder_with_episodes_is_not_overwritten(tmp_path):
    rollout(tmp_path).run(range(2))
    with pytest.raises(ConfigError, match=r"already holds a rollout; go on with --resume"):
        rollout(tmp_path).run(range(2))


def test_a_run_goes_on_only_with_what_it_began_with(tmp_path):
    checkpoint = tmp_path / "policy.bin"
    checkpoint.write_bytes(b"one")
    policy = SteerSource(path=str(checkpoint))
    rollout(tmp_path, policy=policy).run(range(2))
    before = sha256_of(checkpoint)
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["checkpoints"] == {str(checkpoint): before}
    rollout(tmp_path, policy=policy, rows=1, videos=1).run(range(2), resume=True)
    with pytest.raises(ConfigError, match=r"begun with other settings: policy\.gain: 0\.5 -> 0\.9; choose another run_dir"):
        rollout(tmp_path, policy=replace(policy, gain=0.9)).run(range(2), resume=True)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        rollout(tmp_path, policy=policy, seed=1).run(range(2), resume=True)
    checkpoint.write_bytes(b"two")
    with pytest.raises(CheckpointError, match=rf"checkpoints changed.*{before} -> {sha256_of(checkpoint)}"):
        rollout(tmp_path, policy=policy).run(range(2), resume=True)


def test_a_policy_file_is_hashed_wherever_in_the_config_it_stands(tmp_path):
    (tmp_path / "trained").mkdir()
    file = tmp_path / "trained/policy.safetensors"
    file.write_bytes(b"weights")
    (tmp_path / "trained/metrics.jsonl").write_text("changes while nobody looks", encoding="utf-8")
    policy = PolicyFile(path=str(tmp_path / "trained"))
    composed = Composition(members=(MemberConfig(policy=policy, weight=1.0),))
    assert checkpoint_hashes(composed) == checkpoint_hashes([policy, None]) == {str(tmp_path / "trained"): sha256_of(file)}
    assert sha256_of(file) == hashlib.sha256(b"weights").hexdigest()
    file.unlink()
    with pytest.raises(CheckpointError, match="there is no policy"):
        checkpoint_hashes(composed)


def test_a_folder_is_hashed_by_names_and_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/w.bin").write_bytes(b"x")
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    (tmp_path / "b/deep/w.bin").rename(tmp_path / "b/deep/v.bin")
    assert sha256_of(tmp_path / "a") != sha256_of(tmp_path / "b")


def test_a_damaged_line_is_named(tmp_path):
    rollout(tmp_path).run(range(3))
    path = tmp_path / "run/episodes.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + "{}\n" + lines[2], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"episodes\.jsonl line 2 is no episode \(KeyError: 'arm'\)"):
        rollout(tmp_path).run(range(3), resume=True)


def test_two_policies_are_compared_pair_by_pair(tmp_path):
    summary = rollout(tmp_path, compare_to=SteerSource(gain=1.0, noise=0.05)).run(SEEDS)
    outcomes = {arm: [r.success for r in same(summary.results) if r.arm == arm] for arm in ("policy", "baseline")}
    only = [
        sum(a and not b for a, b in zip(outcomes[x], outcomes[y], strict=True)) for x, y in (("policy", "baseline"), ("baseline", "policy"))
    ]
    line = summary.content["comparisons"][0]
    assert only[1] > 0
    assert (line["first"], line["second"], line["only_first"], line["only_second"]) == ("policy", "baseline", *only)
    assert line["mcnemar_p"] == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert line["difference"] == pytest.approx((only[0] - only[1]) / 20)


def test_an_earlier_run_is_compared_on_the_common_seeds(tmp_path):
    rollout(tmp_path, run_dir=tmp_path / "earlier", policy=SteerSource(gain=1.0)).run(range(8))
    summary = rollout(tmp_path, against=tmp_path / "earlier").run(range(4, 20))
    assert summary.comparisons[0].seeds == (4, 5, 6, 7)
    assert summary.comparisons[0].second == "earlier"
    assert len(read_run(tmp_path / "earlier")[0]) == 8


def test_a_comparison_that_cannot_be_made_is_refused_before_the_first_episode(tmp_path):
    rollout(tmp_path, run_dir=tmp_path / "earlier").run(range(3))
    with pytest.raises(ConfigError, match=r"has seeds 0 to 2, none of which is to be run here"):
        rollout(tmp_path, against=tmp_path / "earlier").run(range(3, 9))
    with pytest.raises(CheckpointError, match=r"nowhere holds no finished rollout"):
        rollout(tmp_path, against=tmp_path / "nowhere").run(range(3))
    assert not (tmp_path / "run/episodes.jsonl").exists()


def test_failures_are_filmed_first_and_exactly_as_they_were(tmp_path):
    summary = rollout(tmp_path, videos=3).run(SEEDS)
    failures = [result for result in same(summary.results) if not result.success]
    successes = [result for result in same(summary.results) if result.success]
    chosen = (failures + successes)[:3]
    videos = summary.content["videos"]
    assert [video["seed"] for video in videos] == [result.seed for result in chosen]
    assert all(video["exact"] for video in videos)
    for video, result in zip(videos, chosen, strict=True):
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "run" / video["mp4"]))
        assert (frames, seconds) == (result.length + 1, pytest.approx((result.length + 1) / 10))
        with Image.open(tmp_path / "run" / video["strip"]) as strip:
            assert strip.height == 144
    before = (tmp_path / "run" / videos[0]["mp4"]).stat().st_mtime_ns
    again = rollout(tmp_path, videos=3).run(SEEDS, resume=True)
    assert again.content["videos"] == videos
    assert (tmp_path / "run" / videos[0]["mp4"]).stat().st_mtime_ns == before


def test_a_fast_robot_is_filmed_at_25_pictures_a_second_at_most(tmp_path):
    fast = ActionSpec(names=("x",), control_rate_hz=60)
    env = ReachSource({}, action=fast, stop_on_success=False)
    summary = rollout(tmp_path, env=env, policy=SteerSource(action=fast), videos=1).run(range(2))
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "run" / summary.content["videos"][0]["mp4"]))
    assert (frames, seconds) == (3, pytest.approx(3 / 20, abs=0.01))  # after control steps 0, 3 and 6


def test_successes_are_filmed_where_failures_are_too_few_and_crashes_never(tmp_path):
    env = ReachSource({0: "reset raise", 1: "reset raise"})
    summary = rollout(tmp_path, env=env, policy=SteerSource(gain=1.0, noise=0.0), videos=4).run(range(6))
    assert summary.content["videos"]
    assert all(video["seed"] > 1 for video in summary.content["videos"])
    outcomes = [video["success"] for video in summary.content["videos"]]
    assert outcomes == sorted(outcomes)
    assert True in outcomes


def test_an_environment_that_cannot_draw_loses_only_its_videos(tmp_path):
    summary = rollout(tmp_path, env=ReachSource({}, blind=True), videos=2).run(range(4))
    assert (len(summary.results), summary.content["videos"]) == (4, [])


@pytest.mark.parametrize(("change", "told"), [({"return": 0.125}, False), ({"return": 0.125, "success": False}, True)])
def test_a_recording_is_complained_of_where_it_ended_otherwise_not_for_its_last_digits(tmp_path, change, told):
    rollout(tmp_path, policy=SteerSource(gain=1.0, noise=0.0)).run(range(4))
    path = tmp_path / "run/episodes.jsonl"
    lines = [json.loads(line) | change for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    summary = rollout(tmp_path, policy=SteerSource(gain=1.0, noise=0.0), videos=1).run(range(4), resume=True)
    assert [(video["exact"], video["kept"]) for video in summary.content["videos"]] == [(False, not told)]
    assert ("ended otherwise than the evaluation" in summary.report.read_text(encoding="utf-8")) == told
