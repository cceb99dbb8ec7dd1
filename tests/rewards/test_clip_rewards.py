"""HPSv2, CLIP score and PickScore on small checkpoints, through the real loading path, against the published formulas."""

import json
import shutil

import pytest
import scorers
import torch

from flowrl.errors import RewardError
from flowrl.testing import check_reward
from rewards import CLIPScore, HPSv2, PickScore
from rewards.clip_models import load_clip
from rewards.preprocessing import ClipPixels
from rewards.self_test import run_self_test

SAMPLES = scorers.pictures(4, 60, 90)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return scorers.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def words(tokenizer):
    return scorers.vocabulary_size(tokenizer)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return [scorers.text_tokens(tokenizer, prompt) for prompt in scorers.PROMPTS]


@pytest.fixture(scope="module")
def hps(tmp_path_factory, tokenizer, words):
    """``hps(**fields)``: an HPSv2 on a small checkpoint with the published file's structure; and the checkpoint."""
    state = scorers.open_clip_state(words)
    path = tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt"
    torch.save({"epoch": 3, "name": "a run", "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return lambda **fields: HPSv2(checkpoint=str(path), tokenizer=str(tokenizer), **fields), state


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tokenizer, words):
    """A CLIP saved by transformers, with its tokenizer and preprocessor beside it."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    text = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": words}
    text |= {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1, "max_position_embeddings": 77}
    torch.manual_seed(4)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32, logit_scale_init_value=4.0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    scorers.tokenizer_folder(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3})
    )
    return folder, model


def expected_of_transformers(model, pixels, tokens):
    """Cosines by transformers' own forward pass."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([row]), pixel_values=pixel[None].float()) for row, pixel in zip(tokens, pixels, strict=True)]
    return torch.cat([(row.image_embeds * row.text_embeds).sum(-1) for row in rows])


def test_hpsv2_is_the_cosine_without_a_logit_scale(hps, tokens):
    reward, state = hps
    expected = scorers.clip_cosines(state, scorers.hps_reference_pixels(SAMPLES), tokens)
    scores = reward()(SAMPLES, scorers.PROMPTS).parts["hpsv2"]
    assert expected.std() > 0.02  # the case can tell scores apart
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_hpsv2_keeps_the_contract_of_a_reward_in_any_batch_size(hps):
    check_reward(hps[0](batch=3), SAMPLES, scorers.PROMPTS)


def test_hpsv2_in_half_precision_gives_float32_scores_near_the_full_ones(hps):
    full, half = (hps[0](dtype=dtype)(SAMPLES, scorers.PROMPTS).parts["hpsv2"] for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.03, rtol=0)
    assert not torch.equal(half, full)


def test_an_autocast_of_the_trainer_changes_no_score(hps):
    alone = hps[0]()(SAMPLES, scorers.PROMPTS).parts["hpsv2"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hps[0]()(SAMPLES, scorers.PROMPTS).parts["hpsv2"], alone, atol=0, rtol=0)


def test_a_picture_with_an_infinite_pixel_scores_nan_and_the_others_do_not(hps):
    samples = SAMPLES.clone()
    samples[1, 0, 0, 0] = torch.inf
    scores, clean = (hps[0]()(pictures, scorers.PROMPTS).parts["hpsv2"] for pictures in (samples, SAMPLES))
    assert scores.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(scores[[0, 2, 3]], clean[[0, 2, 3]])


def test_weights_are_read_once_and_each_text_is_encoded_once(hps, monkeypatch):
    from rewards import clip_models

    reads = []
    monkeypatch.setattr(clip_models, "read_tensors", reads.append)
    reward = hps[0]()
    reward.load()
    network = load_clip(reward.source, torch.device("cpu"), torch.float32).network
    encoded = []
    handle = network.module.text_model.register_forward_hook(lambda *_: encoded.append(1))
    prompts = ["the red cat", "the red dog", "the red cat", "the red cat"]
    for _ in range(2):
        hps[0]()(SAMPLES, prompts)
    handle.remove()
    assert len(encoded) == 2
    assert reads == []


def test_a_long_prompt_is_cut_with_its_end_kept(hps, tokenizer):
    reward, state = hps
    row = scorers.text_tokens(tokenizer, "red " * 100)
    cut = [*row[:76], row[-1]]
    expected = scorers.clip_cosines(state, scorers.hps_reference_pixels(SAMPLES[:1]), [cut])
    scores = reward()(SAMPLES[:1], ["red " * 100]).parts["hpsv2"]
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_clip_score_of_an_open_clip_folder_follows_its_activation_and_preprocessing(tmp_path, tokenizer, words, tokens):
    settings = {"resize_mode": "squash", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    state = scorers.saved_open_clip(tmp_path, words, quick_gelu=True, preprocess=settings, image=56, seed=2)
    pixels = scorers.pillow_pixels(SAMPLES, size=56, squash=True, mean=settings["mean"], std=settings["std"])
    expected = scorers.clip_cosines(state, pixels, tokens, quick_gelu=True)
    scores = CLIPScore(checkpoint=str(tmp_path), tokenizer=str(tokenizer))(SAMPLES, scorers.PROMPTS).parts["clip"]
    torch.testing.assert_close(scores.double(), expected, atol=2e-4, rtol=0)
    plain = scorers.clip_cosines(state, pixels, tokens, quick_gelu=False)
    assert (plain - expected).abs().max() > 1e-3  # the activation shows


def test_clip_score_of_a_transformers_folder_is_the_cosine_of_transformers_own_features(clip_folder, tokens):
    folder, model = clip_folder
    samples = scorers.pictures(4, 56, 59)  # 3 pixels too wide: torchvision cuts two at the left
    pixels = scorers.pillow_pixels(samples, size=56, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    scores = CLIPScore(checkpoint=str(folder))(samples, scorers.PROMPTS).parts["clip"]
    torch.testing.assert_close(scores, expected_of_transformers(model, pixels, tokens), atol=1e-5, rtol=0)


def test_pickscore_is_the_logit_scale_times_the_cosine_after_transformers_crop(clip_folder, tokens):
    folder, model = clip_folder
    samples = scorers.pictures(4, 56, 59)  # 3 pixels too wide: transformers cuts one at the left, torchvision two
    pixels = scorers.pillow_pixels(samples, size=56, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), offset=lambda surplus: surplus // 2)
    expected = model.logit_scale.exp().item() * expected_of_transformers(model, pixels, tokens)
    reward = PickScore(checkpoint=str(folder), tokenizer=str(folder))
    scores = reward(samples, scorers.PROMPTS).parts["pickscore"]
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
    check_reward(reward, samples, scorers.PROMPTS, tolerance=1e-4)


def test_hps_texts_are_cleaned_and_pickscore_texts_are_not(hps, clip_folder):
    plain, dressed = ["a cat & the dog"] * 2, ["a cat &amp; the  dog"] * 2
    samples = SAMPLES[:2]
    one, other = (hps[0]()(samples, prompts).parts["hpsv2"] for prompts in (plain, dressed))
    torch.testing.assert_close(one, other)
    pick = PickScore(checkpoint=str(clip_folder[0]), tokenizer=str(clip_folder[0]))
    one, other = (pick(samples, prompts).parts["pickscore"] for prompts in (plain, dressed))
    assert (one - other).abs().min() > 1e-3


def test_a_checkpoint_without_a_layer_is_refused_instead_of_scored_with_random_weights(hps, tmp_path, tokenizer):
    state = dict(hps[1])
    del state["visual.transformer.resblocks.1.mlp.c_proj.weight"]
    torch.save({"state_dict": state}, tmp_path / "damaged.pt")
    reward = HPSv2(checkpoint=str(tmp_path / "damaged.pt"), tokenizer=str(tokenizer))
    with pytest.raises(RewardError, match=r"missing or of another shape are vision_model\.encoder\.layers\.1\.mlp\.fc2\.weight"):
        reward.load()


def test_a_tokenizer_of_another_model_is_refused(hps, tmp_path):
    from flowrl.models.tiny.words import clip_tokenizer

    clip_tokenizer(scorers.WORDS[:4], max_length=77).save_pretrained(tmp_path / "smaller")
    clip_tokenizer([*scorers.WORDS, "more"], max_length=77).save_pretrained(tmp_path / "larger")
    checkpoint = hps[0]().checkpoint
    with pytest.raises(RewardError, match="the tokenizer is not the model's own"):
        HPSv2(checkpoint=checkpoint, tokenizer=str(tmp_path / "smaller")).load()
    with pytest.raises(RewardError, match=r"the tokenizer has \d+ tokens"):
        HPSv2(checkpoint=checkpoint, tokenizer=str(tmp_path / "larger")).load()


def test_an_open_clip_network_that_transformers_cannot_be_is_refused_with_the_other_back_end(tmp_path, words, tokenizer):
    scorers.saved_open_clip(tmp_path, words, image=56)
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"]["attentional_pool"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(RewardError, match=r"vision_cfg\.attentional_pool; set backend: open_clip"):
        CLIPScore(checkpoint=str(tmp_path), tokenizer=str(tokenizer)).load()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ClipPixels(size=56)),
        ({"size": {"shortest_edge": 56}, "resample": 2}, ClipPixels(size=56, interpolation="bilinear")),
        ({"size": 56, "image_mean": [0.5, 0.5, 0.5]}, ClipPixels(size=56, mean=(0.5, 0.5, 0.5))),
        ({"size": {"height": 56, "width": 56}}, ClipPixels(size=56, squash=True)),
    ],
    ids=["nothing", "bilinear", "an old file", "squash"],
)
def test_the_preprocessing_is_that_of_transformers_file(clip_folder, tmp_path, given, expected):
    shutil.copytree(clip_folder[0], tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(given))
    source = CLIPScore(checkpoint=str(tmp_path / "clip")).source
    assert load_clip(source, torch.device("cpu"), torch.float32).pixels == expected


def test_a_preprocessing_that_is_not_known_is_refused(clip_folder, tmp_path):
    shutil.copytree(clip_folder[0], tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64}}))
    with pytest.raises(RewardError, match="the shortest side to 64 for a network of 56"):
        CLIPScore(checkpoint=str(tmp_path / "clip")).load()


def test_known_answers_find_that_random_weights_know_nothing(hps):
    report = run_self_test(hps[0]())
    assert not report.passed
    assert "comparisons come out right" in report.problems[0]


def test_the_version_may_be_the_number_that_yaml_makes_of_it():
    from flowrl.config import instantiate

    reward = instantiate({"target": "rewards.HPSv2", "version": 2.0})
    assert reward == HPSv2(version="2.0")
    assert reward.source.checkpoint == "xswu/HPSv2:HPS_v2_compressed.pt"
    assert HPSv2().source.checkpoint == "xswu/HPSv2:HPS_v2.1_compressed.pt"
    with pytest.raises(ValueError, match=r"version must be 2\.0 or 2\.1, got 3"):
        HPSv2(version="3")


def test_an_odd_batch_or_device_is_refused():
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        HPSv2(batch=0)
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
        CLIPScore(device="gpu")


@pytest.mark.gpu
def test_a_gpu_gives_the_scores_of_the_cpu_and_reads_the_weights_once(hps):
    expected = hps[0]()(SAMPLES, scorers.PROMPTS).parts["hpsv2"]
    scores = hps[0]()(SAMPLES.cuda(), scorers.PROMPTS).parts["hpsv2"]
    assert scores.is_cuda
    torch.testing.assert_close(scores.cpu(), expected, atol=2e-3, rtol=0)  # TF32
    moved = hps[0](device="cuda", dtype="float16")(SAMPLES, scorers.PROMPTS).parts["hpsv2"]
    assert not moved.is_cuda
    torch.testing.assert_close(moved, expected, atol=1e-2, rtol=0)
