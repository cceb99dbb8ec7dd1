import io
import json

import numpy as np
import pytest
from PIL import Image

from flowrl.config import instantiate
from robot.demonstrations import DemonstrationSource, LeRobotFiles

arrow = pytest.importorskip("pyarrow", exc_type=ImportError)  # pyarrow 26 refuses NumPy 1
parquet = pytest.importorskip("pyarrow.parquet")
imageio = pytest.importorskip("imageio")

LENGTHS = (12, 7, 9)
FPS = 10
CAMERA = "observation.images.top"
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
    CAMERA: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channel"]},
    "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index", "task_index")},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
}


def grey(episode, step):
    """Brightness that tells which frame it is, far enough apart for a lossy codec."""
    return 20 + 70 * episode + 5 * step


def frames(episode):
    return [np.full((32, 48, 3), grey(episode, step), np.uint8) for step in range(LENGTHS[episode])]


def rows(episode):
    steps = LENGTHS[episode]
    rng = np.random.default_rng(episode)
    first = sum(LENGTHS[:episode])
    return {
        "observation.state": arrow.array(rng.normal(size=(steps, 3)).astype(np.float32).tolist(), arrow.list_(arrow.float32(), 3)),
        "action": arrow.array(rng.normal(size=(steps, 2)).astype(np.float32).tolist(), arrow.list_(arrow.float32())),
        "next.reward": arrow.array(np.arange(steps, dtype=np.float32)),
        "next.done": arrow.array([step == steps - 1 for step in range(steps)]),
        "next.success": arrow.array([episode != 1 and step == steps - 1 for step in range(steps)]),
        "timestamp": arrow.array(np.arange(steps, dtype=np.float32) / FPS),
        "frame_index": arrow.array(range(steps)),
        "episode_index": arrow.array([episode] * steps),
        "index": arrow.array(range(first, first + steps)),
        "task_index": arrow.array([0] * steps),
    }


def write_video(path, pictures, codec="libx264", quality=9, output_params=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"macro_block_size": 1, "quality": quality, "output_params": list(output_params)}
    imageio.mimwrite(path, pictures, format="ffmpeg", fps=FPS, codec=codec, **settings)


def write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def write_info(root, version, data_path, video_path):
    (root / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "robot_type": "pusht", "fps": FPS, "total_episodes": 3, "chunks_size": 2, "features": FEATURES}
    (root / "meta" / "info.json").write_text(json.dumps(info | {"data_path": data_path, "video_path": video_path}))


def write_v2(root):
    """As LeRobot 0.1 to 0.3 wrote it; two episodes a chunk."""
    write_info(
        root,
        "v2.1",
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    lines = [json.dumps({"episode_index": index, "tasks": ["push"], "length": length}) for index, length in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "push"}\n')
    for index in range(3):
        write_table(root / f"data/chunk-00{index // 2}/episode_00000{index}.parquet", arrow.table(rows(index)))
        write_video(root / f"videos/chunk-00{index // 2}/{CAMERA}/episode_00000{index}.mp4", frames(index))
    return root


def write_v3(root):
    """As LeRobot 0.4 and later write it: episodes 0 and 1 share their files."""
    write_info(
        root,
        "v3.0",
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    write_table(root / "data/chunk-000/file-000.parquet", arrow.concat_tables([arrow.table(rows(0)), arrow.table(rows(1))]))
    write_table(root / "data/chunk-000/file-001.parquet", arrow.table(rows(2)))
    write_video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", frames(0) + frames(1))
    write_video(root / f"videos/{CAMERA}/chunk-000/file-001.mp4", frames(2))
    starts = [0.0, LENGTHS[0] / FPS, 0.0]
    described = {
        "episode_index": [0, 1, 2],
        "tasks": [["push"]] * 3,
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        "dataset_from_index": [0, 12, 19],
        "dataset_to_index": [12, 19, 28],
        f"videos/{CAMERA}/chunk_index": [0, 0, 0],
        f"videos/{CAMERA}/file_index": [0, 0, 1],
        f"videos/{CAMERA}/from_timestamp": starts,
        f"videos/{CAMERA}/to_timestamp": [start + length / FPS for start, length in zip(starts, LENGTHS, strict=True)],
        "stats/action/mean": [[0.0, 0.0]] * 3,
        "meta/episodes/chunk_index": [0, 0, 0],
        "meta/episodes/file_index": [0, 0, 0],
    }
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", arrow.table(described))
    write_table(root / "meta/tasks.parquet", arrow.table({"task_index": [0], "__index_level_0__": ["push"]}))
    return root


@pytest.fixture(params=[write_v2, write_v3], ids=["v2.1", "v3.0"])
def folder(request, tmp_path):
    return request.param(tmp_path / "pusht")


def test_episodes_are_read_with_names_rate_and_outcome(folder):
    read = LeRobotFiles(path=folder).load()
    assert [len(one) for one in read.episodes] == list(LENGTHS)
    assert [one.success for one in read.episodes] == [True, False, True]
    assert (read.action.names, read.action.control_rate_hz, read.sensors) == (("x", "y"), 10.0, ("images.top", "state"))
    for index, one in enumerate(read.episodes):
        rng = np.random.default_rng(index)
        np.testing.assert_allclose(one.observations["state"], rng.normal(size=(LENGTHS[index], 3)), rtol=1e-6)
        np.testing.assert_allclose(one.actions, rng.normal(size=(LENGTHS[index], 2)), rtol=1e-6)
        np.testing.assert_array_equal(one.rewards, np.arange(LENGTHS[index]))
        assert list(one.dones) == [False] * (LENGTHS[index] - 1) + [True]


def test_every_frame_of_a_video_belongs_to_its_step(folder):
    for index, one in enumerate(LeRobotFiles(path=folder).load().episodes):
        pictures = one.observations["images.top"]
        assert (pictures.shape, pictures.dtype) == ((LENGTHS[index], 32, 48, 3), np.uint8)
        np.testing.assert_allclose(pictures.mean((1, 2, 3)), [grey(index, step) for step in range(LENGTHS[index])], atol=2)


def test_videos_in_lerobots_own_codec_are_read(tmp_path, capfd):
    folder = write_v2(tmp_path / "d")
    video = folder / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    try:
        large = [np.kron(picture, np.ones((4, 4, 1), np.uint8)) for picture in frames(0)]
        write_video(video, large, codec="libsvtav1", quality=None, output_params=["-g", "2", "-crf", "30"])
    except (OSError, RuntimeError) as error:
        pytest.skip(f"this ffmpeg cannot write AV1: {error}")
    pictures = LeRobotFiles(path=folder, limit=1).load().episodes[0].observations["images.top"]
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), [grey(0, step) for step in range(LENGTHS[0])], atol=2)


def test_sensors_can_be_renamed_and_episodes_limited(folder):
    read = LeRobotFiles(path=folder, sensors={"proprioception": "observation.state"}, limit=2).load()
    assert (read.sensors, len(read)) == (("proprioception",), 2)


def edit_info(folder, **changes):
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    for key, value in changes.items():
        info["features"][key.replace("__", ".")] = value
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("names", [["x", "y"], {"motors": ["x", "y"]}, {"y": 1, "x": 0}, {"first": ["x"], "second": ["y"]}])
def test_names_of_an_action_come_in_several_shapes(tmp_path, names):
    folder = write_v2(tmp_path / "d")
    edit_info(folder, action={"dtype": "float32", "shape": [2], "names": names})
    assert LeRobotFiles(path=folder, limit=1).load().action.names == ("x", "y")


def test_an_action_without_names_needs_them(tmp_path):
    folder = write_v2(tmp_path / "d")
    edit_info(folder, action={"dtype": "float32", "shape": [2], "names": None})
    with pytest.raises(ValueError, match=r"names 0 of 2 action dimensions .*give action_names"):
        LeRobotFiles(path=folder).load()
    assert LeRobotFiles(path=folder, action_names=("u", "v"), limit=1).load().action.names == ("u", "v")


def test_pictures_may_stand_in_the_table(tmp_path):
    folder = write_v2(tmp_path / "d")
    drawn = np.random.default_rng(0).integers(0, 255, (LENGTHS[0], 8, 8, 3), dtype=np.uint8)

    def png(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    table = arrow.table(rows(0) | {"observation.image": arrow.array([png(one) for one in drawn])})
    write_table(folder / "data/chunk-000/episode_000000.parquet", table)
    edit_info(folder, observation__image={"dtype": "image", "shape": [8, 8, 3], "names": None})
    read = LeRobotFiles(path=folder, sensors={"camera": "observation.image"}, limit=1).load()
    np.testing.assert_array_equal(read.episodes[0].observations["camera"], drawn)


def drop(pattern):
    def damage(folder):
        for path in list(folder.glob(pattern)):
            path.unlink()

    return damage


def cut(pattern):
    def damage(folder):
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def nothing(folder):
    pass


def shorten_video(folder):
    for path in folder.glob("videos/**/*.mp4"):
        write_video(path, frames(0)[:4])


def lose_a_row(folder):
    for path in folder.glob("data/**/*.parquet"):
        write_table(path, parquet.read_table(path).slice(1))


def write_version(version):
    def damage(folder):
        path = folder / "meta" / "info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"codebase_version": version}))

    return damage


@pytest.mark.parametrize(
    ("damage", "fields", "message"),
    [
        (drop("meta/info.json"), {}, "is no LeRobot dataset: it has no meta/info.json"),
        (cut("meta/info.json"), {}, "info.json is damaged"),
        (write_version("v1.6"), {}, "is of version v1.6; versions 2.0, 2.1 and 3.0"),
        (drop("meta/episodes*/**/*.parquet"), {}, "has no parquet files|^$"),
        (drop("meta/episodes.jsonl"), {}, "episodes.jsonl is missing|^$"),
        (cut("meta/episodes.jsonl"), {}, "episodes.jsonl is damaged|^$"),
        (drop("data/**/*.parquet"), {}, "parquet is missing; copy"),
        (cut("data/**/*.parquet"), {}, "parquet is truncated or damaged"),
        (lose_a_row, {}, "has 11 steps of episode 0, but meta/ says 12"),
        (drop("videos/**/*.mp4"), {}, "mp4 is missing"),
        (cut("videos/**/*.mp4"), {}, "mp4 cannot be decoded|mp4 ends after"),
        (shorten_video, {}, "mp4 ends after 4 of the 12 frames"),
        (nothing, {"sensors": {"a": "observation.stat"}}, "no feature 'observation.stat'; did you mean 'observation.state'"),
        (nothing, {"action_key": "actions"}, "no feature 'actions'; did you mean 'action'"),
    ],
)
def test_a_folder_that_lacks_something_says_what(folder, damage, fields, message):
    other = "v2.1" if (folder / "meta" / "episodes").is_dir() else "v3.0"
    damage(folder)
    if message.endswith("|^$") and ("jsonl" in message) == (other == "v2.1"):
        assert LeRobotFiles(path=folder, **fields).load()
        return
    with pytest.raises(ValueError, match=message):
        LeRobotFiles(path=folder, **fields).load()


def test_it_builds_from_a_config_as_a_source_of_demonstrations(tmp_path):
    folder = write_v2(tmp_path / "d")
    config = {"target": "robot.demonstrations.LeRobotFiles", "path": str(folder), "sensors": {"state": "observation.state"}, "limit": 1}
    source = instantiate(config)
    assert isinstance(source, DemonstrationSource)
    assert source.load().episodes[0].observations["state"].shape == (12, 3)
    with pytest.raises(ValueError, match="limit must be >= 1"):
        LeRobotFiles(path=folder, limit=0)
