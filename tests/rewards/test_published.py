"""The published networks' sizes, counted from their architectures without allocating them."""

import pytest
import torch

from rewards.clip_conversion import clip_settings
from rewards.hpsv2 import VIT_H14
from rewards.published import AESTHETIC, CLIP_TOKENIZER, CLIP_VIT_H14, CLIP_VIT_L14, HPS_V2_1, IMAGE_REWARD, PICKSCORE


def parameters(module):
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def meta_clip(projection, vision, text):
    """A CLIP of transformers without storage; vision and text are (width, layers, heads)."""
    from transformers import CLIPConfig, CLIPModel

    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    towers = [dict(zip(sizes, tower, strict=True)) | {"intermediate_size": 4 * tower[0]} for tower in (vision, text)]
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(projection_dim=projection, vision_config=towers[0] | {"patch_size": 14}, text_config=towers[1]))


def test_the_clips_have_the_stated_parameters():
    huge, large = parameters(meta_clip(1024, (1280, 32, 16), (1024, 24, 16))), parameters(meta_clip(768, (1024, 24, 16), (768, 12, 12)))
    assert huge == HPS_V2_1.parameters == PICKSCORE.parameters == CLIP_VIT_H14.parameters
    assert large == CLIP_VIT_L14.parameters
    assert (huge * 4 / 1e9, large * 4 / 1e9) == pytest.approx((HPS_V2_1.gigabytes, CLIP_VIT_L14.gigabytes), abs=0.006)  # float32


def test_image_reward_has_the_stated_parameters():
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224}
    with torch.device("meta"):
        vision = BlipVisionModel(BlipVisionConfig(**large))
        text = BlipTextModel(
            BlipTextConfig(vocab_size=30524, encoder_hidden_size=1024, is_decoder=True, num_attention_heads=12), add_pooling_layer=False
        )
    assert parameters(vision) + parameters(text) + AESTHETIC.parameters == IMAGE_REWARD.parameters
    assert AESTHETIC.parameters == 768 * 1024 + 1024 + 1024 * 128 + 128 + 128 * 64 + 64 + 64 * 16 + 16 + 16 + 1


def test_hpsv2s_shapes_mean_vit_h14():
    layers = {f"transformer.resblocks.{i}.ln_1.weight": (1024,) for i in range(24)}
    layers |= {f"visual.transformer.resblocks.{i}.ln_1.weight": (1280,) for i in range(32)}
    shapes = layers | {
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (5120, 1280),
        "transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
    }
    settings = clip_settings({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, VIT_H14)
    vision, text = settings["vision_config"], settings["text_config"]
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    assert [vision[name] for name in sizes] == [1280, 32, 16, 5120, "gelu"]
    assert [text[name] for name in sizes] == [1024, 24, 16, 4096, "gelu"]
    assert (vision["image_size"], vision["patch_size"], settings["projection_dim"]) == (224, 14, 1024)
    assert (text["vocab_size"], text["max_position_embeddings"], text["eos_token_id"]) == (49408, 77, 49407)


def test_advice_names_the_file_the_command_and_the_path():
    assert "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir weights/HPSv2`" in HPS_V2_1.advice
    assert "path: weights/HPSv2/HPS_v2.1_compressed.pt" in HPS_V2_1.advice
    assert "path: weights/PickScore_v1" in PICKSCORE.advice
    assert "tokenizer" in CLIP_TOKENIZER.advice
