import json
from pathlib import Path

import pytest

from flowrl.config import asset_path
from flowrl.models import ADAPTERS
from flowrl.train.plan import architecture_of, bundled_ids, shared_part

# Parameters as the published checkpoints have them: sizes of their safetensors files, model cards, or counts printed by their authors.
PUBLISHED = {
    "black-forest-labs/FLUX.1-dev": 11_901_408_320,
    "Qwen/Qwen-Image": 20_430_401_088,
    "Tongyi-MAI/Z-Image": 6_154_908_736,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": 1_604_462_752,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1_418_996_800,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 859_520_964,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
}
SHARED = {
    "clip_l": 123_060_480,
    "clip_l_projected": 123_650_304,
    "clip_g": 694_659_840,
    "t5_xxl": 4_762_310_656,
    "umt5_xxl": 5_680_910_336,
    "gemma2_2b": 2_614_341_888,
    "qwen3_4b": 4_022_468_096,
    "qwen2_5_vl_7b": 8_292_166_656,
    "vae_sd": 83_653_863,
    "vae_flux": 83_819_683,
    "vae_wan21": 126_892_531,
    "dc_ae_f32c32": 312_250_275,
    "clip_vit_h_14": 986_109_441,
    "clip_vit_l_14": 427_616_513,
}


def network_of(identifier):
    parts = architecture_of(identifier).parts
    return parts.get("transformer") or parts["unet"]


@pytest.mark.parametrize(("identifier", "count"), PUBLISHED.items())
def test_a_bundled_network_has_as_many_parameters_as_the_published_one(identifier, count):
    assert sum(parameter.numel() for parameter in network_of(identifier).build().parameters()) == count


@pytest.mark.parametrize(("name", "count"), SHARED.items())
def test_a_shared_network_has_as_many_parameters_as_the_published_one(name, count):
    assert sum(parameter.numel() for parameter in shared_part(name).build().parameters()) == count


def test_buffers_that_are_saved_count_too():
    part = network_of("stabilityai/stable-diffusion-3.5-medium")
    assert part.parameters == 2_243_171_520 + 384 * 384 * 1536  # the table of positions


def test_every_bundled_architecture_is_read_by_an_adapter_and_names_its_network():
    for identifier in bundled_ids():
        architecture = architecture_of(identifier)
        adapter = ADAPTERS[architecture.pipeline]
        assert {adapter.network, "vae"} <= architecture.parts.keys()
        assert architecture.encoders()


def test_no_two_files_describe_the_same_model():
    assert len(set(bundled_ids())) == len(bundled_ids())


def test_a_folder_is_read_as_it_is():
    architecture = architecture_of("assets/models/digits_sd3")
    assert set(architecture.parts) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert Path(architecture.origin).resolve() == asset_path("models/digits_sd3").resolve()


def test_a_pipeline_that_is_neither_here_nor_bundled_is_refused_with_what_is():
    with pytest.raises(ValueError, match=r"nobody/nothing is not on this machine.*black-forest-labs/FLUX\.1-dev.*download the pipeline"):
        architecture_of("nobody/nothing")


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*vae.config\.json.*incomplete"):
        architecture_of(str(tmp_path))


def test_an_unknown_shared_network_is_refused():
    with pytest.raises(ValueError, match="no shared network 't5_xxxl'; there are clip_g"):
        shared_part("t5_xxxl")
