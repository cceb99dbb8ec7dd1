"""Every adapter with its text encoders dropped, its decoder away and its embeddings on disk: the same numbers."""

import pytest
import torch
from PIL import Image

from flowrl.errors import ConfigError
from flowrl.flow import has_tail, tail_of
from flowrl.models import AutoModel, FirstBlockCache, TaylorSeerCache
from flowrl.models.tiny import TINY
from flowrl.rl import Prompt

CACHES = {"first block": FirstBlockCache(threshold=1e9), "taylor": TaylorSeerCache(interval=2, warm_up=2)}
CACHED = {
    "first block": {"flux1", "flux1_kontext", "qwen_image", "sd3", "wan", "wan22_5b"},
    "taylor": set(TINY) - {"sd", "sdxl", "wan22"},
}
"""The others are UNets, have two experts, blocks of two kinds, an unknown kind, or (the tiny Z-Image) one block."""


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request, tmp_path_factory):
    """``(name, folder)`` of one tiny pipeline."""
    folder = tmp_path_factory.mktemp("tiny") / request.param
    TINY[request.param]().save_pretrained(folder)
    return request.param, str(folder)


@pytest.fixture
def texts(tiny, tmp_path):
    """Two prompts, with a picture where the model wants one."""
    Image.new("RGB", (16, 16), (200, 30, 60)).save(tmp_path / "picture.png")
    facts = {"image": str(tmp_path / "picture.png")} if "kontext" in tiny[0] else {}
    return [Prompt("red", facts=facts), Prompt("a blue dog", facts=facts)]


def size(name):
    return {"height": 32, "width": 32} if name in {"sana", "wan", "wan22", "wan22_5b", "lumina2"} else {"height": 16, "width": 16}


def test_dropped_encoders_and_an_offloaded_decoder_change_no_number(tiny, texts, tmp_path):
    name, folder = tiny
    kept = AutoModel(path=folder, **size(name)).load("cpu")
    away = AutoModel(path=folder, **size(name), text_encoders="drop", decoder="offload", embedding_cache=str(tmp_path / "cache")).load(
        "cpu"
    )
    away.prepare(texts)
    one, other = kept.encode(texts), away.encode(texts)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    latents = torch.randn(1, *kept.state_shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kept.decode(latents), away.decode(latents))


@pytest.mark.parametrize("kind", CACHES)
def test_tails_are_cached_or_the_cache_is_refused_when_the_model_loads(tiny, texts, kind):
    name, folder = tiny
    if name not in CACHED[kind]:
        with pytest.raises(ConfigError, match="leave tail_cache out"):
            AutoModel(path=folder, tail_cache=CACHES[kind]).load("cpu")
        return
    model = AutoModel(path=folder, **size(name), tail_cache=CACHES[kind]).load("cpu")
    condition = model.encode(texts)
    states = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(0))
    field, times = model.field(), (0.45, 0.4, 0.35, 0.3)
    assert has_tail(field)
    with torch.no_grad(), tail_of(field) as tail:
        found = [tail(states, t, condition) for t in times]
    exact = [field(states, t, condition).detach() for t in times]
    torch.testing.assert_close(found[0], exact[0], atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(one, other) for one, other in zip(found[1:], exact[1:], strict=True))
