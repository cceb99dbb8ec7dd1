"""Text encoders and decoders that make room: where they are, what stays the same, what is refused."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from harness import standard_noise, two_updates
from safetensors.torch import load_file
from torch import nn

from flowrl.errors import CheckpointError, ConfigError
from flowrl.models import LoRA, PromptCache, StableDiffusion3, placement, texts
from flowrl.models.embedding_store import EmbeddingStore, folder_fingerprint
from flowrl.models.placement import Parked
from flowrl.rl import Prompt

META = torch.device("meta")
PROMPTS = ["red", "green circle", "a photo of square"]


@pytest.fixture
def source(pipeline_folder):
    return StableDiffusion3(path=str(pipeline_folder), max_sequence_length=3, guidance_scale=2.0, negative_prompt="photo")


@pytest.fixture
def reads(monkeypatch):
    """How often text encoders were read by themselves."""
    calls = []
    original = StableDiffusion3.read_text_encoders
    monkeypatch.setattr(StableDiffusion3, "read_text_encoders", lambda self: calls.append(1) or original(self))
    return calls


def equal_rows(one, other):
    return one.tensors.keys() == other.tensors.keys() and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


# -------------------------------------------------------------------------------------------------------------- placement


def test_a_parked_module_works_on_its_device_and_is_itself_again_afterwards():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval().requires_grad_(requires_grad=False)
    before = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with Parked(module, META).at_work():
        assert {tensor.device for tensor in module.state_dict().values()} == {META}
        assert module(torch.zeros(4, 2, device=META)).shape == (4, 3)
    with pytest.raises(RuntimeError), Parked(module, META).at_work():
        module(torch.zeros(4, 3, device=META))
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(after[name] is before[name] for name in before)


def test_a_parked_module_leaves_when_the_outermost_user_is_done():
    parked = Parked(nn.Linear(1, 1).requires_grad_(requires_grad=False), META)
    with parked.at_work():
        with parked.at_work():
            pass
        assert parked.module.weight.device == META
    assert parked.module.weight.device == torch.device("cpu")


def test_weights_that_two_layers_share_are_shared_on_the_device_too():
    module = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)}).requires_grad_(requires_grad=False)
    module["two"].weight = module["one"].weight
    with Parked(module, META).at_work():
        assert module["two"].weight is module["one"].weight


# ---------------------------------------------------------------------------------------------------------- text encoders


@pytest.mark.parametrize("plan", ["offload", "drop"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_do_not_depend_on_where_the_encoders_are(source, plan, dtype):
    kept = replace(source, dtype=dtype).load("cpu")
    other = replace(source, dtype=dtype, text_encoders=plan).load("cpu")
    other.prepare(PROMPTS)
    assert equal_rows(kept.encode(PROMPTS), other.encode(PROMPTS))


def test_offloaded_encoders_are_read_at_their_first_use_and_work_on_the_device(source, reads, monkeypatch):
    model = replace(source, text_encoders="offload").load("cpu")
    assert model.pipeline.text_encoder is None
    assert not reads
    model.encode(["red"])
    model.encode(["green"])
    assert len(reads) == 1
    seen = []
    for parked in model._prompts._encoders.values():
        monkeypatch.setattr(parked, "_device", META)

    def encode(prompts):
        seen.append(model.pipeline.text_encoder.device)
        return {"row": torch.zeros(len(prompts), 1)}

    monkeypatch.setattr(model._prompts, "_encode", encode)
    model.encode(["a photo"])
    assert seen == [META]
    assert model.pipeline.text_encoder.device == torch.device("cpu")


def test_encoders_go_to_the_device_once_for_all_texts_of_a_call(source, monkeypatch):
    model, moves = replace(source, text_encoders="offload").load("cpu"), []
    model.encode(["red"])
    put = placement._put
    monkeypatch.setattr(placement, "_put", lambda places, device: moves.append(device) or put(places, device))
    model.encode(["green", "circle", "square"])
    assert moves == [torch.device("cpu")] * 2 + [None] * 2  # two encoders, there and back
    moves.clear()
    model.encode(["green", "red"])
    assert not moves


def test_dropped_encoders_are_gone_and_an_unseen_text_is_refused_with_what_to_do(source, reads):
    model = replace(source, text_encoders="drop").load("cpu")
    model.prepare(PROMPTS)
    assert model.pipeline.text_encoder is model.pipeline.text_encoder_2 is None
    model.field()  # guidance: the negative prompt was prepared as well
    model.encode(PROMPTS[::-1])
    with pytest.raises(
        ConfigError, match=r"no embedding of 'blue': .*model\.prepare\(\[\.\.\.\]\) first, or set text_encoders to 'offload'"
    ):
        model.encode(["blue"])
    model.prepare(["blue"])
    assert len(model.encode(["blue", *PROMPTS])) == 4
    assert len(reads) == 2


def test_dropped_encoders_leave_every_prompt_of_the_run_in_memory_whatever_the_limit(source):
    model = replace(source, text_encoders="drop", cached_prompts=1, guidance_scale=1.0).load("cpu")
    model.prepare(["red", "green"])
    model.prepare(["circle"])
    assert len(model.encode(["circle", "red", "green"])) == 3


def test_preparing_encodes_each_text_once_and_kept_encoders_wait_for_the_first_use(source, monkeypatch):
    calls = []
    for plan, expected in (("offload", ["red", "green", "photo"]), ("keep", [])):
        model = replace(source, text_encoders=plan).load("cpu")
        encode = model._prompts._encode
        monkeypatch.setattr(model._prompts, "_encode", lambda prompts, encode=encode: calls.extend(prompts) or encode(prompts))
        model.prepare(["red", "green", "red"])
        model.prepare(["green"])
        assert calls == expected
        calls.clear()


def test_more_prompts_than_memory_holds_are_left_to_their_first_use(source, monkeypatch):
    model = replace(source, text_encoders="offload", cached_prompts=2).load("cpu")
    monkeypatch.setattr(model._prompts, "_encode", lambda prompts: pytest.fail("encoded for nothing"))
    model.prepare(["red", "green", "circle"])


def test_a_run_with_dropped_encoders_and_an_offloaded_decoder_is_the_same_run(source, tmp_path):
    lora, weights = LoRA(rank=2), []
    for name, fields in (
        ("kept", {}),
        ("away", {"text_encoders": "drop", "decoder": "offload", "embedding_cache": str(tmp_path / "cache")}),
    ):
        folder = two_updates(replace(source, lora=lora, **fields), tmp_path / name, ["red", "green"])
        weights.append(load_file(folder / "pytorch_lora_weights.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_encoder_of_an_unknown_library_is_not_loaded(pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["os", "system"]}))
    model = StableDiffusion3(path=str(folder), text_encoders="offload").load("cpu")
    with pytest.raises(CheckpointError, match="has a text_encoder of 'os'; flowrl loads those of transformers and diffusers"):
        model.encode(["red"])


# ----------------------------------------------------------------------------------------------------- embeddings on disk


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "cache", {"model": "one"})


ROW = {"tokens": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16), "mask": torch.tensor([True, False])}


def test_a_stored_row_comes_back_bit_for_bit_under_its_own_text_and_model(store, tmp_path):
    store.write("red", {name: tensor.T if tensor.ndim > 1 else tensor for name, tensor in ROW.items()})
    found = EmbeddingStore(tmp_path / "cache", {"model": "one"}).read("red")
    assert torch.equal(found["tokens"], ROW["tokens"].T)
    assert torch.equal(found["mask"], ROW["mask"])
    assert store.read("Red") is None
    assert EmbeddingStore(tmp_path / "cache", {"model": "two"}).read("red") is None
    assert json.loads((store.folder / "encoder.json").read_text()) == {"model": "one"}


def test_a_prompt_with_facts_is_another_text_and_so_is_one_whose_picture_has_changed(store, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"one")
    plain, edit = "red", Prompt("red", facts={"image": str(picture)})
    store.write(edit, ROW)
    assert plain not in store
    assert Prompt("red", facts={"image": str(picture)}) in store
    picture.write_bytes(b"another")
    assert edit not in store


@pytest.mark.parametrize("size", [0, 7, -1])
def test_a_half_written_file_is_no_embedding_and_is_written_again(store, size, caplog):
    store.write("red", ROW)
    path = next(store.folder.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:size])
    assert "red" not in store
    with caplog.at_level(logging.WARNING):
        assert store.read("red") is None
    assert "its text is encoded again" in caplog.text
    cache = PromptCache(lambda prompts: {name: tensor[None] for name, tensor in ROW.items()}, store=store)
    assert torch.equal(cache(["red"]).tensors["tokens"][0], ROW["tokens"])
    assert "red" in store
    assert not list(store.folder.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write a prompt's embedding to .*; make room, or leave `embedding_cache` out"):
        EmbeddingStore(tmp_path / "cache", {}).write("red", ROW)


def test_a_second_run_reads_no_text_encoder(source, tmp_path, reads):
    source = replace(source, text_encoders="drop", embedding_cache=str(tmp_path / "cache"))
    first, second = source.load("cpu"), source.load("cpu")
    first.prepare(PROMPTS)
    second.prepare(PROMPTS)
    assert len(reads) == 1
    assert equal_rows(first.encode(PROMPTS), second.encode(PROMPTS))


def test_memory_forgets_and_the_disk_does_not(source, tmp_path, reads):
    model = replace(source, text_encoders="drop", embedding_cache=str(tmp_path), cached_prompts=1).load("cpu")
    model.prepare(PROMPTS)
    assert len(model._prompts._cache) <= 1
    assert len(model.encode(PROMPTS)) == 3
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"guidance_scale": 3.0, "decode_batch": 1, "lora": LoRA(), "height": 8}, True),
        ({"max_sequence_length": 2}, False),
        ({"dtype": "bfloat16"}, False),
    ],
    ids=["what the encoder does not see", "its own setting", "dtype"],
)
def test_what_an_embedding_depends_on_is_in_its_identity(source, fields, same):
    assert (texts.encoder_identity(replace(source, **fields)) == texts.encoder_identity(source)) is same


def test_the_identity_is_that_of_the_files_wherever_they_are(source, pipeline_folder, tmp_path):
    copy = shutil.copytree(pipeline_folder, tmp_path / "copy")
    moved = replace(source, path=str(copy))
    assert texts.encoder_identity(moved) == texts.encoder_identity(source)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert texts.encoder_identity(moved) == texts.encoder_identity(source)
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80?")
    assert texts.encoder_identity(moved) != texts.encoder_identity(source)


def test_the_fingerprint_of_a_large_file_sees_its_ends_and_its_middle(tmp_path):
    (tmp_path / "part").mkdir()
    path, size = tmp_path / "part" / "weights", 1 << 20
    found = set()
    for place in (None, 0, size // 63 * 30, size - 1):
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        path.write_bytes(content)
        found.add(folder_fingerprint(tmp_path, ("part", "none"))["part/weights"])
    assert len(found) == 4


def test_processes_begin_at_different_prompts_and_share_a_store(store, monkeypatch):
    encoded = []
    for rank, known in ((0, ["a", "b"]), (1, ["a", "b", "c", "d"])):
        monkeypatch.setattr(texts, "_rank", lambda rank=rank: (rank, 2))
        encoder = texts.PromptEncoder.__new__(texts.PromptEncoder)
        vars(encoder).update(_helpers=(), _encoders={}, _dropped=False)
        encoder._encode = lambda prompts: encoded.append(prompts[0]) or {"row": torch.zeros(1, 1)}
        encoder._cache = PromptCache(encoder._encode_now, store=store)
        encoder._fill(known, limit=0)
    assert encoded == ["a", "b", "c", "d"]


# ---------------------------------------------------------------------------------------------------------------- decoder


def test_an_offloaded_decoder_works_on_the_device_and_decodes_the_same(load):
    kept, away = load(), load(decoder="offload")
    latents = standard_noise(kept, 3)
    assert torch.equal(kept.decode(latents), away.decode(latents))
    seen = []
    away._decoder[0]._device = META
    away.pixels = lambda latents: seen.append(away.pipeline.vae.device) or torch.zeros(len(latents), 3, 16, 16)
    away.decode(latents)
    assert seen == [META]
    assert away.pipeline.vae.device == torch.device("cpu")


def test_a_decoder_in_bfloat16_gives_float32_pictures_close_to_the_others(load):
    exact, rounded = load(), load(decoder_dtype="bfloat16", dtype="float32")
    latents = standard_noise(exact, 2)
    assert rounded.pipeline.vae.dtype == torch.bfloat16
    assert rounded.decode(latents).dtype == torch.float32
    assert rounded.module.dtype == torch.float32
    difference = (rounded.decode(latents) - exact.decode(latents)).abs().max()
    assert 0 < difference < 0.02


def test_tiles_are_decoded_one_by_one_and_blended(load):
    whole, tiled = load(height=16, width=24), load(height=16, width=24, decode_tile=8)
    shapes = []
    tiled.pipeline.vae.decoder.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape[-2:]))
    latents = standard_noise(whole, 1)
    pictures = tiled.decode(latents)
    assert max(max(shape) for shape in shapes) == 8  # pixels
    assert pictures.shape == (1, 3, 16, 24)
    torch.testing.assert_close(pictures[..., :2, :2], whole.decode(latents)[..., :2, :2], atol=0.3, rtol=0)


def test_a_tile_as_large_as_the_picture_changes_nothing(load):
    latents = standard_noise(load(), 1)
    assert torch.equal(load(decode_tile=16).decode(latents), load().decode(latents))


def test_a_tile_whose_overlap_is_no_whole_latent_is_refused(load):
    with pytest.raises(ConfigError, match="decode_tile must be a multiple of 8 for this decoder, got 12"):
        load(decode_tile=12)


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_encoders": "of"}, "unknown text_encoders 'of'; allowed: drop, keep, offload"),
        ({"decoder": "drop"}, "unknown decoder 'drop'"),
        ({"decoder_dtype": "float8"}, "unknown decoder_dtype 'float8'; did you mean"),
        ({"decode_tile": 0}, "decode_tile must be at least 1, got 0"),
        ({"compile": "yes"}, "unknown compile 'yes'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_does_not_exist_is_refused_before_anything_loads(fields, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        StableDiffusion3(path="nowhere", **fields)
