"""Small pipelines built from nothing: real classes, words that stay whole, no trace in the global generator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowrl.errors import ConfigError
from flowrl.models import TinySD3, init_for_small_training, tiny_sd3_pipeline
from flowrl.models.tiny.words import byte_symbols, clip_tokenizer, word_merges

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@given(st.lists(st.text("aeno", min_size=1, max_size=6), min_size=1, max_size=12, unique=True))
def test_every_word_of_the_vocabulary_is_one_token_of_the_real_bpe(words):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    merges = word_merges(words)
    tokens = dict.fromkeys(["a", "e", "n", "o", "a</w>", "e</w>", "n</w>", "o</w>", *(a + b for a, b in merges)])
    real = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges, end_of_word_suffix="</w>", unk_token="a"))
    assert [real.encode(word).tokens for word in words] == [[word + "</w>"] for word in words]


def test_text_outside_the_vocabulary_is_written_byte_by_byte():
    tokenizer = clip_tokenizer(["one", "tone ones"], max_length=8)
    assert tokenizer.tokenize("Tone, ones!") == ["tone</w>", ",</w>", "ones</w>", "!</w>"]
    assert tokenizer.tokenize("né") == ["n", "Ã", "©</w>"]
    assert tokenizer.model_max_length == 8


def test_the_byte_symbols_are_gpt2s():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_symbols()) == set(ByteLevel.alphabet())
    assert len(byte_symbols()) == 256


def test_a_prompt_ends_where_the_text_encoder_pools():
    pipeline = tiny_sd3_pipeline(vocabulary=WORDS)
    ids = pipeline.tokenizer(["seven", "one two"], padding="max_length", return_tensors="pt").input_ids
    assert (ids == pipeline.text_encoder.config.eos_token_id).int().argmax(-1).tolist() == [2, 3]


def test_the_default_size_is_a_small_pipeline_of_16_tokens_below_10_megabytes(tmp_path):
    pipeline = tiny_sd3_pipeline(vocabulary=WORDS)
    pipeline.save_pretrained(tmp_path)
    assert sum(parameter.numel() for parameter in pipeline.transformer.parameters()) < 0.7e6
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10e6
    assert pipeline.transformer.pos_embed(torch.zeros(1, 4, 8, 8)).shape == (1, 16, 64)
    assert not any(part.training for part in pipeline.components.values() if isinstance(part, torch.nn.Module))


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (TinySD3(vocabulary=tuple(WORDS), seed=seed).build().transformer.proj_out.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_different_words_give_clearly_different_embeddings():
    pipeline = tiny_sd3_pipeline(vocabulary=WORDS)
    tokens, _, pooled, _ = pipeline.encode_prompt(WORDS, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    assert tokens.shape == (10, 8, 64)
    assert tokens[:, 1].std(dim=0).mean() > 0.5
    assert torch.pdist(pooled).min() > 0.1


def test_small_training_starts_with_gates_ajar_and_small_modulation():
    transformer = tiny_sd3_pipeline(vocabulary=WORDS, layers=2).transformer
    init_for_small_training(transformer, gate_bias=0.3, generator=torch.Generator().manual_seed(0))
    shift_scale_gate = transformer.transformer_blocks[0].norm1.linear.bias.view(6, 64)[:, 0].tolist()
    assert shift_scale_gate == pytest.approx([0, 0, 0.3, 0, 0, 0.3])
    assert transformer.norm_out.linear.bias.abs().max() == 0
    assert transformer.transformer_blocks[0].norm1_context.linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert transformer.transformer_blocks[1].norm1_context.linear.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 9}, r"image_size must be a multiple of VAE factor \* patch_size = 2, got 9"),
        ({"head_dim": 10}, "head_dim and text_dim must be multiples of 4, got 10 and 32"),
        ({"text_layers": 1}, "text_layers must be at least 2, got 1"),
        ({"vae_channels": (16, 18)}, r"vae_groups must divide every entry of vae_channels, got 4 and \(16, 18\)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        TinySD3(vocabulary=("one",), **sizes)


def test_a_vocabulary_word_that_clip_would_split_is_refused():
    with pytest.raises(ConfigError, match=r"runs of the letters a-z, got \['7', \"it's\"\]"):
        tiny_sd3_pipeline(vocabulary=["one 7", "it's"])
