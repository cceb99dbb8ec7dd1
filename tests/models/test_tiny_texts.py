"""Small tokenizers and text encoders: whole words, the real special tokens and chat form, and nothing lost on disk."""

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from flowrl.errors import ConfigError
from flowrl.models import AutoModel
from flowrl.models.tiny import TINY
from flowrl.models.tiny.__main__ import main
from flowrl.models.tiny.texts import (
    clip_text_encoder,
    qwen3,
    qwen_tokenizer,
    qwen_vl,
    random_weights,
    t5_encoder,
    t5_tokenizer,
    umt5_encoder,
)
from flowrl.models.tiny.words import clip_tokenizer
from flowrl.rl import Prompt

WORDS = ("red house", "Cat")
TOKENIZERS = {
    "t5": lambda: t5_tokenizer(WORDS),
    "qwen": lambda: qwen_tokenizer(WORDS),
    "clip": lambda: clip_tokenizer(WORDS, max_length=8),
}
ENCODERS = {
    "t5": (t5_encoder, "t5"),
    "umt5": (umt5_encoder, "t5"),
    "clip": (clip_text_encoder, "clip"),
    "qwen3": (qwen3, "qwen"),
    "qwen_vl": (qwen_vl, "qwen"),
}


def test_t5_writes_words_whole_and_other_text_letter_by_letter():
    tokenizer = t5_tokenizer(WORDS)
    assert tokenizer.tokenize("red Cat") == ["▁red", "▁Cat"]
    assert tokenizer.tokenize("cat?") == ["▁", "c", "a", "t", "?"]


def test_t5_ends_with_its_end_token_and_pads_with_zeros():
    ids = t5_tokenizer(WORDS)(["red Cat", ""], padding="max_length", max_length=4, truncation=True).input_ids
    assert ids[0][2:] == [1, 0]
    assert ids[1] == [1, 0, 0, 0]


def test_qwen_writes_words_whole_also_after_a_space():
    assert qwen_tokenizer(WORDS).tokenize("red red,Cat cat\n\n") == ["red", "Ġred", ",", "Cat", "Ġ", "c", "a", "t", "ĊĊ"]


def test_qwen_images_prefix_takes_the_34_tokens_that_its_pipeline_cuts_off():
    prefix = (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
        "objects and background:<|im_end|>\n<|im_start|>user\n"
    )
    assert len(qwen_tokenizer(WORDS)(prefix).input_ids) == 34


@pytest.mark.parametrize(("thinking", "answer"), [(True, ""), (False, "<think>\n\n</think>\n\n")])
def test_qwen_speaks_in_qwen3s_chat_form(thinking, answer):
    tokenizer = qwen_tokenizer(WORDS)
    message = [{"role": "user", "content": "red"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    assert text == "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n" + answer
    assert tokenizer.tokenize(text)[:6] == ["<|im_start|>", "user", "Ċ", "red", "<|im_end|>", "Ċ"]
    assert tokenizer.tokenize(text)[9:] == ([] if thinking else ["<think>", "ĊĊ", "</think>", "ĊĊ"])


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_a_saved_tokenizer_is_read_as_it_was(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    tokenizer.save_pretrained(tmp_path)
    texts = ["red house", "Cat? é <|im_end|> 12"]
    for again in (type(tokenizer).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again(texts).input_ids == tokenizer(texts).input_ids
        assert (again.pad_token_id, again.model_max_length) == (tokenizer.pad_token_id, tokenizer.model_max_length)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_saved_encoder_is_read_as_it_was_and_tells_words_apart(tmp_path, name):
    build, tokenizer = ENCODERS[name][0], TOKENIZERS[ENCODERS[name][1]]()
    with random_weights(3):
        encoder = build(tokenizer, width=16)
    encoder.save_pretrained(tmp_path)
    again = type(encoder).from_pretrained(tmp_path)
    ids = tokenizer(["red house", "house red"], return_tensors="pt").input_ids
    first, second = (model(input_ids=ids, output_hidden_states=True).hidden_states[-1].detach() for model in (encoder, again))
    assert torch.equal(first, second)
    assert not encoder.training
    assert (first[0] - first[1]).std() > 0.1


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with random_weights(1):
            drawn.append(torch.randn(4))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("build", [t5_tokenizer, qwen_tokenizer])
def test_words_that_a_tokenizer_would_split_are_refused(build):
    with pytest.raises(ConfigError, match=r"runs of the letters a-z, got \['7', \"it's\"\]"):
        build(["one 7", "it's"])


@pytest.mark.parametrize("name", list(TINY))
def test_every_small_pipeline_is_written_and_drawn_from_by_its_adapter(tmp_path, capsys, name):
    folder = tmp_path / "pipeline"
    main([name, str(folder)])
    assert f"path: {folder}, height: 32, width: 32" in capsys.readouterr().out
    model = AutoModel(path=str(folder), height=32, width=32).load("cpu")
    Image.new("RGB", (32, 32), "red").save(folder / "red.png")
    state = model.initial_state(torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0)), 0.8)
    with torch.no_grad():
        velocity = model.field()(state, 0.8, model.encode([Prompt("a red house", facts={"image": str(folder / "red.png")})]))
    assert velocity.shape == state.shape
    assert velocity.isfinite().all()
    assert model.decode(state).shape[-3:] == (3, 32, 32)


def test_an_unknown_pipeline_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(["flux3", "folder"])
    assert "flux2_klein" in capsys.readouterr().err
