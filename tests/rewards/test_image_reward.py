"""ImageReward: a small BLIP under the published names against its formula, written out."""

from pathlib import Path

import pytest
import scorers
import torch
from scorers import Random, attention, gelu, layer_norm, linear

from flowrl.errors import RewardError
from flowrl.testing import check_reward
from rewards import ImageReward

SAMPLES = scorers.pictures(4, 224, 251)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *scorers.WORDS)
VISION, TEXT = 128, 192  # two and three heads of 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    Path(folder, "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def blip_state(words, seed=1):
    """BLIP of two layers a tower: timm's names for the picture, BERT's with cross attention for the text."""
    r, state = Random(seed), {}
    state |= {"visual_encoder.cls_token": r.matrix(1, 1, VISION), "visual_encoder.pos_embed": 0.5 * r.matrix(1, 197, VISION) * 197**0.5}
    state |= {
        "visual_encoder.patch_embed.proj.weight": r.matrix(VISION, 3, 16, 16),
        "visual_encoder.patch_embed.proj.bias": r.vector(VISION),
    }
    state |= r.norm("visual_encoder.norm", VISION)
    for layer in range(2):
        name = f"visual_encoder.blocks.{layer}"
        state |= r.norm(f"{name}.norm1", VISION) | r.norm(f"{name}.norm2", VISION)
        state |= r.linear(f"{name}.attn.qkv", 3 * VISION, VISION) | r.linear(f"{name}.attn.proj", VISION, VISION)
        state |= r.linear(f"{name}.mlp.fc1", 4 * VISION, VISION) | r.linear(f"{name}.mlp.fc2", VISION, 4 * VISION)
    state["text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    state["text_encoder.embeddings.word_embeddings.weight"] = r.matrix(words, TEXT) * TEXT**0.5
    state["text_encoder.embeddings.position_embeddings.weight"] = 0.3 * r.matrix(64, TEXT) * TEXT**0.5
    state |= r.norm("text_encoder.embeddings.LayerNorm", TEXT)
    for layer in range(2):
        name = f"text_encoder.encoder.layer.{layer}"
        for kind, source in (("attention", TEXT), ("crossattention", VISION)):
            state |= r.linear(f"{name}.{kind}.self.query", TEXT, TEXT) | r.linear(f"{name}.{kind}.self.key", TEXT, source)
            state |= r.linear(f"{name}.{kind}.self.value", TEXT, source) | r.linear(f"{name}.{kind}.output.dense", TEXT, TEXT)
            state |= r.norm(f"{name}.{kind}.output.LayerNorm", TEXT)
        state |= r.linear(f"{name}.intermediate.dense", 2 * TEXT, TEXT) | r.linear(f"{name}.output.dense", TEXT, 2 * TEXT)
        state |= r.norm(f"{name}.output.LayerNorm", TEXT)
    unused = r.linear("vision_proj", 32, VISION) | r.linear("text_proj", 32, TEXT)  # of BLIP's pretraining
    return state | unused


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """``saved(**fields)``: an ImageReward on a small checkpoint; and the two states."""
    blip, head = blip_state(len(VOCABULARY) + 2), scorers.head_state(TEXT)  # [DEC] and [ENC] are never in a prompt
    path = tmp_path_factory.mktemp("image_reward") / "ImageReward.pt"
    torch.save({f"blip.{name}": value for name, value in blip.items()} | {f"mlp.{name}": value for name, value in head.items()}, path)
    return lambda **fields: ImageReward(checkpoint=str(path), tokenizer=str(tokenizer), **fields), blip, head


def expected_scores(blip, head, samples, prompts):
    """(MLP(first token of BERT with cross attention to the ViT) − mean) / std."""
    seen = picture_tokens(
        {n.removeprefix("visual_encoder."): v.double() for n, v in blip.items() if n.startswith("visual_encoder.")}, samples
    )
    text = {n.removeprefix("text_encoder."): v.double() for n, v in blip.items() if n.startswith("text_encoder.")}
    first = torch.cat([first_token(text, seen[row : row + 1], prompt) for row, prompt in enumerate(prompts)])
    return (scorers.head_output(head, first) - 0.16717362830052426) / 1.0333394966054072


def picture_tokens(s, samples):
    x = scorers.patches(scorers.pillow_pixels(samples).double(), s["patch_embed.proj.weight"]) + s["patch_embed.proj.bias"]
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], dim=1) + s["pos_embed"]
    for layer in range(2):
        name = f"blocks.{layer}"
        q, k, v = affine(layer_norm(x, s, f"{name}.norm1", 1e-6), s, f"{name}.attn.qkv").chunk(3, dim=-1)
        x = x + affine(attention(q, k, v, VISION // 64, None), s, f"{name}.attn.proj")
        x = x + affine(gelu(affine(layer_norm(x, s, f"{name}.norm2", 1e-6), s, f"{name}.mlp.fc1")), s, f"{name}.mlp.fc2")
    return layer_norm(x, s, "norm", 1e-6)


def first_token(s, seen, prompt):
    """The words without padding: padding is masked in the published network."""
    numbers = [VOCABULARY.index(word) for word in ("[CLS]", *prompt.split()[:33], "[SEP]")]
    x = (s["embeddings.word_embeddings.weight"][numbers] + s["embeddings.position_embeddings.weight"][: len(numbers)])[None]
    x = layer_norm(x, s, "embeddings.LayerNorm", 1e-12)
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        for kind, source in (("attention", None), ("crossattention", seen)):
            keys = x if source is None else source
            q, k, v = (affine(y, s, f"{name}.{kind}.self.{part}") for y, part in ((x, "query"), (keys, "key"), (keys, "value")))
            read = affine(attention(q, k, v, TEXT // 64, None), s, f"{name}.{kind}.output.dense")
            x = layer_norm(read + x, s, f"{name}.{kind}.output.LayerNorm", 1e-12)
        read = affine(gelu(affine(x, s, f"{name}.intermediate.dense")), s, f"{name}.output.dense")
        x = layer_norm(read + x, s, f"{name}.output.LayerNorm", 1e-12)
    return x[:, 0]


def affine(x, s, name):
    return linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


@pytest.mark.parametrize(("shape", "tolerance"), [((224, 251), 2e-5), ((60, 90), 1e-3)], ids=["cropped only", "resized by Pillow"])
def test_image_reward_is_the_standardised_number_of_the_published_formula(saved, shape, tolerance):
    reward, blip, head = saved
    samples = scorers.pictures(4, *shape)
    expected = expected_scores(blip, head, samples, scorers.PROMPTS)
    assert expected.std() > 0.1
    scores = reward()(samples, scorers.PROMPTS).parts["image_reward"]
    torch.testing.assert_close(scores.double(), expected, atol=tolerance, rtol=0)


def test_picture_and_prompt_both_count(saved):
    reward = saved[0]()
    one, other = (reward(SAMPLES[:2], [prompt] * 2).parts["image_reward"] for prompt in scorers.PROMPTS[:2])
    assert (one - other).abs().min() > 1e-2
    assert (one[0] - one[1]).abs() > 1e-2


def test_image_reward_keeps_the_contract_of_a_reward_in_any_batch_size(saved):
    check_reward(saved[0](batch=3), SAMPLES, scorers.PROMPTS, tolerance=1e-4)


def test_prompts_are_cut_to_thirty_five_tokens(saved):
    reward, blip, head = saved
    prompt = " ".join(["red", "cat"] * 30)
    scores = reward()(SAMPLES[:1], [prompt]).parts["image_reward"]
    torch.testing.assert_close(scores.double(), expected_scores(blip, head, SAMPLES[:1], [prompt]), atol=2e-5, rtol=0)


def test_prompts_are_read_without_upper_case_and_accents(saved):
    one, other = (saved[0]()(SAMPLES[:1], [prompt]).parts["image_reward"] for prompt in ("a red circle", "A R\u00e9d  CIRCLE"))
    assert torch.equal(one, other)


def test_half_precision_scores_are_near_the_full_ones(saved):
    full, half = (saved[0](dtype=dtype)(SAMPLES, scorers.PROMPTS).parts["image_reward"] for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(half, full, atol=0.2, rtol=0)
    assert half.dtype == torch.float32


def test_a_checkpoint_without_cross_attention_is_refused(saved, tmp_path, tokenizer):
    state = {f"blip.{n}": v for n, v in saved[1].items() if "crossattention" not in n} | {f"mlp.{n}": v for n, v in saved[2].items()}
    torch.save(state, tmp_path / "plain.pt")
    with pytest.raises(RewardError, match=r"missing or of another shape are encoder\.layer\.0\.crossattention"):
        ImageReward(checkpoint=str(tmp_path / "plain.pt"), tokenizer=str(tokenizer)).load()


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(saved, tmp_path):
    from transformers import BertTokenizer

    Path(tmp_path, "vocab.txt").write_text("\n".join([*VOCABULARY, "one", "two", "three"]) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    with pytest.raises(RewardError, match="the tokenizer has 20 tokens, the network 19"):
        ImageReward(checkpoint=saved[0]().checkpoint, tokenizer=str(tmp_path)).load()
