"""Trained weights survive the disk, diffusers itself loads them, and damage is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.errors import CheckpointError, ConfigError
from flowrl.models import LORA_FILE, LoRA

STRONG = LoRA(rank=4, alpha=12.0)  # a scale of 3: lost metadata would show


def sample(pipeline, noise):
    arguments = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 3, "output_type": "latent"}
    return pipeline(["red square", "green circle"], latents=noise.clone(), **arguments).images


@pytest.fixture
def trained_lora(load, perturb):
    model = load(lora=STRONG)
    perturb(model)
    return model


@pytest.fixture
def trained_full(load, perturb):
    model = load()
    perturb(model)
    return model


def test_load_lora_weights_restores_the_trained_samples_exactly_with_alpha_other_than_rank(trained_lora, load_pipeline, noise, tmp_path):
    trained_lora.save_weights(tmp_path)
    pipeline, x = load_pipeline(), noise(trained_lora, 2)
    untrained = sample(pipeline, x)
    pipeline.load_lora_weights(tmp_path, weight_name=LORA_FILE)
    assert torch.equal(sample(pipeline, x), sample(trained_lora.pipeline, x))
    assert (sample(pipeline, x) - untrained).abs().max() > 1e-2


def test_a_lora_reads_its_own_checkpoint_into_the_same_parameters(trained_lora, load, euler, noise, tmp_path):
    trained_lora.save_weights(tmp_path)
    model = load(lora=STRONG)
    parameters = model.trainable_parameters()
    model.load_weights(tmp_path)
    assert all(ours is theirs for ours, theirs in zip(parameters, model.trainable_parameters(), strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters, trained_lora.trainable_parameters(), strict=True))
    x = noise(model, 1)
    assert torch.equal(euler(model, ["red"], x), euler(trained_lora, ["red"], x))


def test_from_pretrained_restores_fully_trained_weights_exactly(trained_full, load_pipeline, noise, tmp_path):
    from diffusers import SD3Transformer2DModel

    trained_full.save_weights(tmp_path)
    pipeline = load_pipeline(transformer=SD3Transformer2DModel.from_pretrained(tmp_path, subfolder="transformer"))
    x = noise(trained_full, 2)
    assert torch.equal(sample(pipeline, x), sample(trained_full.pipeline, x))
    assert not torch.equal(sample(pipeline, x), sample(load_pipeline(), x))
    assert [path.suffix for path in (tmp_path / "transformer").iterdir() if path.suffix != ".json"] == [".safetensors"]


def test_full_weights_read_their_own_checkpoint_into_the_same_parameters(trained_full, load, tmp_path):
    trained_full.save_weights(tmp_path)
    model = load()
    parameters = model.trainable_parameters()
    model.load_weights(tmp_path)
    assert all(ours is theirs for ours, theirs in zip(parameters, model.trainable_parameters(), strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parameters, trained_full.trainable_parameters(), strict=True))


def test_full_weights_in_several_files_are_read_whole(trained_full, load, tmp_path):
    trained_full.module.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    model = load()
    model.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), trained_full.module.parameters(), strict=True))


@pytest.mark.parametrize("lora", [None, STRONG], ids=["full", "lora"])
def test_a_given_state_dict_is_saved_in_place_of_the_modules_own(load, lora, tmp_path):
    model = load(lora=lora)
    model.save_weights(tmp_path, state={name: torch.full_like(tensor, 0.5) for name, tensor in model.module.state_dict().items()})
    model.load_weights(tmp_path)
    assert all((parameter == 0.5).all() for parameter in model.trainable_parameters())


def test_every_process_starts_from_the_same_lora_and_the_global_generator_is_left_alone(load):
    torch.manual_seed(1)
    first = load(lora=STRONG)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = load(lora=STRONG)
    assert all(torch.equal(a, b) for a, b in zip(first.trainable_parameters(), second.trainable_parameters(), strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fresh_lora_changes_nothing(load, euler, noise):
    base, model = load(), load(lora=STRONG)
    assert torch.equal(euler(model, ["red"], noise(model, 1)), euler(base, ["red"], noise(base, 1)))


def test_a_missing_checkpoint_is_named(load, tmp_path):
    with pytest.raises(CheckpointError, match=rf"nowhere/{LORA_FILE} is missing; give the folder"):
        load(lora=STRONG).load_weights(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere/transformer/diffusion_pytorch_model.safetensors is missing"):
        load().load_weights(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1], ids=["empty", "no header", "half", "last byte gone"])
def test_a_truncated_checkpoint_is_named(trained_lora, tmp_path, keep):
    trained_lora.save_weights(tmp_path)
    path = tmp_path / LORA_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{LORA_FILE} is truncated or not safetensors .*; use another checkpoint"):
        trained_lora.load_weights(tmp_path)


def test_a_pickle_in_place_of_safetensors_is_refused(trained_lora, tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / LORA_FILE)
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        trained_lora.load_weights(tmp_path)


@pytest.mark.parametrize("other", [LoRA(rank=8, alpha=12.0), LoRA(rank=4, alpha=4.0)], ids=["rank", "alpha"])
def test_a_lora_of_another_rank_or_alpha_is_refused(load, trained_lora, tmp_path, other):
    trained_lora.save_weights(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"has LoRA rank 4 and alpha 12.0, the config {other.rank} and {other.alpha}; make them the same"
    ):
        load(lora=other).load_weights(tmp_path)


def test_a_lora_of_another_rank_without_metadata_is_refused(load, trained_lora, tmp_path):
    trained_lora.save_weights(tmp_path)
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / LORA_FILE)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model in \d+ tensors: .*lora_A.weight is \(4, 64\), the model's is \(8, 64\)"
    ):
        load(lora=LoRA(rank=8, alpha=12.0)).load_weights(tmp_path)


def test_a_lora_on_other_layers_is_refused(load, trained_lora, tmp_path):
    trained_lora.save_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model in \d+ tensors: .* is not in the model"):
        load(lora=LoRA(rank=4, alpha=12.0, targets=("to_q",))).load_weights(tmp_path)


def test_full_weights_with_a_tensor_missing_are_refused(trained_full, tmp_path):
    trained_full.save_weights(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("proj_out.bias")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"does not fit the model in 1 tensors: proj_out\.bias is missing; use the config"):
        trained_full.load_weights(tmp_path)


def test_a_refused_checkpoint_leaves_the_model_as_it_was(load, trained_lora, tmp_path):
    trained_lora.save_weights(tmp_path)
    tensors = load_file(tmp_path / LORA_FILE)
    save_file(dict(list(tensors.items())[1:]), tmp_path / LORA_FILE)
    model = load(lora=STRONG)
    before = [parameter.clone() for parameter in model.trainable_parameters()]
    with pytest.raises(CheckpointError, match="is missing"):
        model.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, model.trainable_parameters(), strict=True))


def test_an_unreadable_index_of_shards_is_named(trained_full, tmp_path):
    trained_full.module.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}})[:-3])
    with pytest.raises(CheckpointError, match="is truncated or not an index of shards"):
        trained_full.load_weights(tmp_path)


def test_a_checkpoint_of_the_other_kind_is_named(trained_lora, trained_full, tmp_path):
    trained_lora.save_weights(tmp_path / "lora")
    trained_full.save_weights(tmp_path / "full")
    with pytest.raises(CheckpointError, match="holds full weights, but the model has a LoRA; leave `lora` out"):
        trained_lora.load_weights(tmp_path / "full")
    with pytest.raises(CheckpointError, match="holds a LoRA, but the model has none; add `lora`"):
        trained_full.load_weights(tmp_path / "lora")


@pytest.mark.parametrize("lora", [None, STRONG], ids=["full", "lora"])
def test_weights_that_cannot_be_written_are_an_error_that_says_so(load, lora, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write weights to .*; free some space, or choose another folder"):
        load(lora=lora).save_weights(tmp_path / "file" / "folder")


@pytest.mark.parametrize("lora", [None, STRONG], ids=["full", "lora"])
def test_a_full_disk_is_an_error_that_says_so(load, lora, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write weights .*No space left on device"):
        load(lora=lora).save_weights(tmp_path)


def test_targets_that_fit_no_layer_are_refused_with_the_layers_there_are(load):
    with pytest.raises(ConfigError, match=r"no layer of SD3Transformer2DModel ends in one of \['to_x'\]; its layers end in .*'to_q'"):
        load(lora=LoRA(targets=("to_x",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha must be > 0, got -1.0"),
        ({"targets": ()}, "at least one target"),
    ],
    ids=["rank", "alpha", "targets"],
)
def test_a_bad_lora_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**fields)


def test_the_folder_of_the_base_model_is_never_written_to(trained_lora, pipeline_folder, tmp_path):
    copy = shutil.copytree(pipeline_folder, tmp_path / "copy")
    trained_lora.save_weights(tmp_path / "out")
    for path in copy.rglob("*.safetensors"):
        assert path.read_bytes() == (pipeline_folder / path.relative_to(copy)).read_bytes()
