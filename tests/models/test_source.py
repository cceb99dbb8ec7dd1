"""What a model's configuration refuses, and what is said of a pipeline that cannot be loaded."""

import json
import shutil
from pathlib import Path

import pytest

from flowrl.errors import CheckpointError, ConfigError
from flowrl.models import AutoModel, StableDiffusion3
from flowrl.models.source import resolve_path
from flowrl.models.texts import encoder_identity


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale must be >= 1, got -1.0; 1 is no guidance"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be >= 1, got nan"),
        ({"dtype": "bfloat"}, "unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
        ({"height": 0}, "height must be at least 1, got 0"),
        ({"decode_batch": 0}, "decode_batch must be at least 1, got 0"),
        ({"max_sequence_length": 513}, "max_sequence_length must be in 0..512, got 513"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_value_out_of_range_is_refused_before_anything_loads(fields, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        StableDiffusion3(path="nowhere", **fields)


@pytest.mark.parametrize("path", ["nowhere", "./owner/name", "/nowhere/at/all", "owner/name/part", "~/nowhere"])
def test_a_path_that_is_neither_folder_nor_hub_id_is_named(path):
    with pytest.raises(CheckpointError, match=rf"no such folder: '{path}'; give a local folder, assets/models/..., or the id owner/name"):
        StableDiffusion3(path=path).load("cpu")


def test_a_hub_id_is_passed_on_and_a_local_folder_wins(tmp_path, monkeypatch):
    assert resolve_path("owner/name-3.5") == "owner/name-3.5"
    (tmp_path / "assets" / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("assets/models") == "assets/models"


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")  # diffusers' own
def test_an_unreachable_hub_model_is_named():
    with pytest.raises(CheckpointError, match=r"cannot load owner/no-such-model: .*; it must be a \w+( pipeline)? saved whole"):
        StableDiffusion3(path="owner/no-such-model").load("cpu")


def test_the_bundled_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(resolve_path("assets/models/digits_sd3"), "model_index.json").is_file()


def test_a_pipeline_of_another_class_is_named(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))
    with pytest.raises(CheckpointError, match="holds a FluxPipeline, StableDiffusion3 reads a StableDiffusion3Pipeline"):
        StableDiffusion3(path=str(folder)).load("cpu")


def test_a_folder_without_a_pipeline_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot load .*model_index\.json"):
        StableDiffusion3(path=str(tmp_path)).load("cpu")


@pytest.mark.parametrize("part", ["transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_part_of_the_pipeline_is_named(pipeline_folder, tmp_path, part, damage):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    path = folder / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot load .*copy: .*; it must be a \w+( pipeline)? saved whole"):
        StableDiffusion3(path=str(folder)).load("cpu")


@pytest.mark.parametrize(
    ("size", "message"),
    [((18, 16), "multiples of 4 for .*, got 18 x 16"), ((16, 28), "at most 24 for .*, got 16 x 28")],
    ids=["not a multiple", "no positions"],
)
def test_a_size_that_does_not_fit_the_pipeline_is_refused(load, size, message):
    with pytest.raises(ConfigError, match=message):
        load(height=size[0], width=size[1])


@pytest.mark.parametrize(
    ("removed", "lacks"),
    [("vae", "vae"), ("tokenizer_2", "tokenizer_2"), ("tokenizer/*o*.json", "tokenizer's vocabulary"), ("scheduler", "scheduler")],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name_and_no_tokenizer_is_made_of_nothing(removed, lacks, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    for path in folder.glob(removed):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if removed.startswith("tokenizer/"):
        (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
        for path in folder.glob("tokenizer/*.txt"):
            path.unlink()
    with pytest.raises(CheckpointError, match=f"copy lacks {lacks}, which its model_index.json names; copy or download"):
        StableDiffusion3(path=str(folder)).load("cpu")


def test_a_field_that_the_found_adapter_lacks_comes_with_the_nearest_one(pipeline_folder):
    with pytest.raises(
        TypeError, match=r"flowrl.models.StableDiffusion3, which reads .*, has no field 'guidance'; did you mean 'guidance_scale'"
    ):
        AutoModel(path=str(pipeline_folder), guidance=3.0)


def test_a_text_encoder_that_the_index_leaves_out_makes_other_embeddings_although_its_files_are_there(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    before = encoder_identity(StableDiffusion3(path=str(folder)))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": [None, None]}))
    assert encoder_identity(StableDiffusion3(path=str(folder))) != before
