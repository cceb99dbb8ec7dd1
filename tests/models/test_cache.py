"""Each text is encoded once."""

import pytest
import torch

from flowrl.models import PromptCache


@pytest.fixture
def counting_encoder():
    """An encoder whose row is the text's length, and the calls it got."""
    calls = []

    def encode(prompts):
        calls.append(prompts)
        return {"length": torch.tensor([[float(len(prompt))] for prompt in prompts])}

    return encode, calls


def test_the_text_encoder_runs_once_per_distinct_prompt(load):
    model = load()
    seen = []
    hook = lambda module, arguments, output: seen.append(len(arguments[0]))  # noqa: E731
    model.pipeline.text_encoder.register_forward_hook(hook)
    first = model.encode(["red", "green", "red"])
    again = model.encode(["green", "a red circle", "red"])
    assert seen == [1, 1, 1]
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(first.tensors[name][[0, 1]], first.tensors[name][[2, 1]])
        assert torch.equal(again.tensors[name][[0, 2]], first.tensors[name][[1, 0]])
        assert not torch.equal(again.tensors[name][1], again.tensors[name][0])


def test_embeddings_are_those_of_the_pipeline(load, load_pipeline):
    model, prompts = load(), ["red", "a photo of circle"]
    ours = model.encode(prompts).tensors
    tokens, _, pooled, _ = load_pipeline().encode_prompt(prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=3)
    torch.testing.assert_close(ours["prompt_embeds"], tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours["pooled_prompt_embeds"], pooled, atol=1e-6, rtol=1e-5)
    assert not ours["prompt_embeds"].requires_grad


def test_an_embedding_does_not_depend_on_which_prompts_were_new_with_it(load):
    together, alone = load(), load()
    rows = together.encode(["red", "green", "a photo of square"])
    assert all(torch.equal(rows.tensors[name][1:2], tensor) for name, tensor in alone.encode(["green"]).tensors.items())


def test_unseen_prompts_are_encoded_in_batches(counting_encoder):
    encode, calls = counting_encoder
    cache = PromptCache(encode, batch=2)
    cache(["a", "bb"])
    assert cache(["ccc", "a", "dddd", "eeeee", "a"]).tensors["length"].flatten().tolist() == [3, 1, 4, 5, 1]
    assert calls == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]


def test_the_least_recently_used_prompt_is_forgotten_first(counting_encoder):
    encode, calls = counting_encoder
    cache = PromptCache(encode, limit=2)
    for prompts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cache(prompts)
    assert calls == [["a"], ["b"], ["c"], ["b"]]
    assert len(cache) == 2


def test_one_call_may_have_more_prompts_than_the_limit(counting_encoder):
    encode, _ = counting_encoder
    cache = PromptCache(encode, limit=1)
    assert cache(["a", "bb", "ccc", "bb"]).tensors["length"].flatten().tolist() == [1, 2, 3, 2]
    assert len(cache) == 1


def test_remembered_rows_do_not_keep_the_batch_they_came_from():
    cache = PromptCache(lambda prompts: {"row": torch.zeros(len(prompts), 1000)}, batch=100)
    cache([str(number) for number in range(100)])
    assert cache._rows["3"]["row"].untyped_storage().nbytes() == 4000


def test_embeddings_carry_no_graph():
    weight = torch.ones(1, requires_grad=True)
    assert not PromptCache(lambda prompts: {"row": weight.expand(len(prompts), 1) * 2})(["a"]).tensors["row"].requires_grad


def test_no_prompts_are_refused(counting_encoder):
    with pytest.raises(ValueError, match="got no prompts to encode"):
        PromptCache(counting_encoder[0])([])


def test_a_limit_below_one_is_refused(counting_encoder):
    with pytest.raises(ValueError, match="limit and batch must be at least 1, got 0 and 1"):
        PromptCache(counting_encoder[0], limit=0)
