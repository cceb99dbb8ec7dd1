"""Small random checkpoints with the published names, and what the published networks compute from them, written out.

The restatements take the checkpoint's own names and know nothing of `rewards`: plain matrix products on float64.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl.models.tiny.words import clip_tokenizer

WORDS = ("a", "red", "green", "blue", "circle", "square", "photo", "of", "the", "cat", "and", "dog")
PROMPTS = ("a red circle", "a photo of the blue square", "the cat and the dog", "a green cat")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures(rows: int = 4, height: int = 60, width: int = 90, seed: int = 0) -> Tensor:
    """Random pictures with structure at several scales, (rows, 3, height, width) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(rows, 3, max(height // k, 1), max(width // k, 1), generator=generator) for k in (1, 5, 20)]
    return sum(torch.nn.functional.interpolate(layer, size=(height, width)) for layer in layers) / 3


def tokenizer_folder(folder: Path) -> Path:
    """A CLIP tokenizer of a few words."""
    clip_tokenizer(WORDS, max_length=77).save_pretrained(folder)
    return folder


def vocabulary_size(folder: Path) -> int:
    """How many tokens a saved CLIP tokenizer has."""
    from transformers import CLIPTokenizer

    return len(CLIPTokenizer.from_pretrained(folder))


class Random:
    """Tensors of a checkpoint: weights keep the size of what they multiply, scales lie around 1."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> Tensor:
        """(output, input)."""
        return torch.randn(*shape, generator=self.generator) * 1.5 / math.sqrt(math.prod(shape[1:]))

    def vector(self, length: int, centre: float = 0.0) -> Tensor:
        """A bias, or the scale of a layer norm."""
        return centre + 0.2 * torch.randn(length, generator=self.generator)

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        """A layer norm."""
        return {f"{name}.weight": self.vector(width, 1.0), f"{name}.bias": self.vector(width)}

    def linear(self, name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        """A linear layer."""
        return {f"{name}.weight": self.matrix(outputs, inputs), f"{name}.bias": self.vector(outputs)}


def open_clip_state(words: int, *, vision: int = 160, text: int = 128, features: int = 48, patch: int = 14, image: int = 224, seed=0):
    """A CLIP with two layers a tower under open_clip's names."""
    r = Random(seed)
    state = {
        "positional_embedding": 0.3 * r.matrix(77, text) * text**0.5,
        "text_projection": r.matrix(text, features),
        "logit_scale": torch.tensor(math.log(37.0)),
        "token_embedding.weight": r.matrix(words, text) * text**0.5,
        "visual.class_embedding": r.vector(vision),
        "visual.positional_embedding": 0.3 * r.matrix((image // patch) ** 2 + 1, vision) * vision**0.5,
        "visual.conv1.weight": r.matrix(vision, 3, patch, patch),
        "visual.proj": r.matrix(vision, features),
        **r.norm("ln_final", text),
        **r.norm("visual.ln_pre", vision),
        **r.norm("visual.ln_post", vision),
    }
    for tower, width in (("transformer.resblocks", text), ("visual.transformer.resblocks", vision)):
        for layer in range(2):
            name = f"{tower}.{layer}"
            attention = {f"{name}.attn.in_proj_weight": r.matrix(3 * width, width), f"{name}.attn.in_proj_bias": r.vector(3 * width)}
            state |= attention | r.linear(f"{name}.attn.out_proj", width, width)
            state |= r.norm(f"{name}.ln_1", width) | r.norm(f"{name}.ln_2", width)
            state |= r.linear(f"{name}.mlp.c_fc", 2 * width, width) | r.linear(f"{name}.mlp.c_proj", width, 2 * width)
    return state


def saved_open_clip(folder: Path, words: int, *, quick_gelu: bool = False, preprocess: dict | None = None, **sizes) -> dict[str, Tensor]:
    """The files of an open_clip repository; returns the checkpoint."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = open_clip_state(words, **sizes)
    vision, text, patch = (
        state["visual.conv1.weight"].shape[0],
        state["token_embedding.weight"].shape[1],
        state["visual.conv1.weight"].shape[-1],
    )
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5) * patch
    model = {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": side, "layers": 2, "width": vision, "head_width": 80, "patch_size": patch, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 77, "vocab_size": words, "width": text, "heads": text // 64, "layers": 2, "mlp_ratio": 2.0},
    }
    content = {"model_cfg": model, "preprocess_cfg": preprocess or {}}
    Path(folder, "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file(state, folder / "open_clip_model.safetensors")
    return state


def text_tokens(folder: Path, prompt: str) -> list[int]:
    """Start, one number a word, end: what the tokenizer of `WORDS` must give."""
    from transformers import CLIPTokenizer

    vocabulary = CLIPTokenizer.from_pretrained(folder).get_vocab()
    return [vocabulary["<|startoftext|>"], *(vocabulary[word + "</w>"] for word in prompt.lower().split()), vocabulary["<|endoftext|>"]]


def clip_cosines(state: dict[str, Tensor], pixels: Tensor, tokens: list[list[int]], *, quick_gelu: bool = False) -> Tensor:
    """Cosines of pictures and texts, as CLIP computes them."""
    image = clip_image_embedding(state, pixels, quick_gelu=quick_gelu)
    text = torch.stack([clip_text_embedding(state, row, quick_gelu=quick_gelu) for row in tokens])
    return (image * text).sum(-1) / (image.norm(dim=-1) * text.norm(dim=-1))


def clip_image_embedding(state: dict[str, Tensor], pixels: Tensor, *, quick_gelu: bool = False, heads: int = 2) -> Tensor:
    """Class token after the transformer, normalised and projected."""
    s = {name.removeprefix("visual."): value.double() for name, value in state.items() if name.startswith("visual.")}
    x = patches(pixels.double(), s["conv1.weight"])
    x = torch.cat([s["class_embedding"].expand(len(x), 1, -1), x], dim=1) + s["positional_embedding"]
    x = layer_norm(x, s, "ln_pre")
    x = clip_layers(x, s, heads=heads, quick_gelu=quick_gelu, mask=None)
    return layer_norm(x[:, 0], s, "ln_post") @ s["proj"]


def clip_text_embedding(state: dict[str, Tensor], tokens: list[int], *, quick_gelu: bool = False, heads: int = 2) -> Tensor:
    """Token of the end after the causal transformer, normalised and projected."""
    s = {name: value.double() for name, value in state.items() if not name.startswith("visual.")}
    x = (s["token_embedding.weight"][tokens] + s["positional_embedding"][: len(tokens)])[None]
    causal = torch.full((len(tokens), len(tokens)), -torch.inf, dtype=torch.float64).triu(1)
    x = clip_layers(x, s, heads=heads, quick_gelu=quick_gelu, mask=causal)
    return layer_norm(x[0, -1], s, "ln_final") @ s["text_projection"]


def clip_layers(x, s, *, heads, quick_gelu, mask):
    """Pre-norm transformer layers under open_clip's names."""
    for layer in range(2):
        name = f"transformer.resblocks.{layer}"
        q, k, v = linear(layer_norm(x, s, f"{name}.ln_1"), s[f"{name}.attn.in_proj_weight"], s[f"{name}.attn.in_proj_bias"]).chunk(
            3, dim=-1
        )
        x = x + linear(attention(q, k, v, heads, mask), s[f"{name}.attn.out_proj.weight"], s[f"{name}.attn.out_proj.bias"])
        hidden = linear(layer_norm(x, s, f"{name}.ln_2"), s[f"{name}.mlp.c_fc.weight"], s[f"{name}.mlp.c_fc.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden) if quick_gelu else gelu(hidden)
        x = x + linear(hidden, s[f"{name}.mlp.c_proj.weight"], s[f"{name}.mlp.c_proj.bias"])
    return x


def patches(pixels: Tensor, kernel: Tensor) -> Tensor:
    """Non-overlapping patches, each projected, (batch, patch, channel), row by row."""
    size = kernel.shape[-1]
    cut = pixels.unfold(2, size, size).unfold(3, size, size)  # batch, colour, row, column, y, x
    return torch.einsum("bcrsyx,ocyx->brso", cut, kernel).flatten(1, 2)


def linear(x, weight, bias):
    """Affine map."""
    return x @ weight.T + bias


def layer_norm(x, s, name, eps=1e-5):
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def gelu(x):
    """The exact GELU."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attention(q, k, v, heads, mask):
    """Softmax attention in heads; ``mask`` is added."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def pillow_pixels(samples: Tensor, *, size: int = 224, offset=lambda surplus: round(surplus / 2), squash: bool = False, mean=MEAN, std=STD):
    """CLIP's preprocessing with Pillow itself: 8-bit picture, shortest side, centre crop, normalise."""
    rows = []
    for sample in samples:
        picture = Image.fromarray((sample.permute(1, 2, 0).numpy() * 255).round().clip(0, 255).astype("uint8"))
        width, height = picture.size
        short = min(width, height)
        target = (size, size) if squash else (int(size * width / short), int(size * height / short))
        picture = picture.resize((target[0], height), Image.BICUBIC).resize(target, Image.BICUBIC)  # rows first, as before Pillow 13
        left, top = (offset(side - size) for side in target)
        picture = picture.crop((left, top, left + size, top + size))
        rows.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 255)
    return (torch.stack(rows) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def cubic_matrix(old: int, new: int) -> Tensor:
    """Anti-aliased bicubic resizing of a line as a matrix (new, old), from its definition: Keys' kernel with a = −0.5, widened."""
    scale = old / new
    width = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * scale
    x = (torch.arange(old, dtype=torch.float64)[None] + 0.5 - centres).abs() / width
    kernel = torch.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, torch.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return kernel / kernel.sum(1, keepdim=True)


def hps_reference_pixels(samples: Tensor, size: int = 224) -> Tensor:
    """HPSv2's preprocessing: 8-bit picture as numbers, longest side, black borders, normalise."""
    numbers = (samples * 255).round().double() / 255
    height, width = (round(side * size / max(samples.shape[-2:])) for side in samples.shape[-2:])
    resized = cubic_matrix(samples.shape[-2], height) @ numbers @ cubic_matrix(samples.shape[-1], width).T
    canvas = torch.zeros(len(samples), 3, size, size, dtype=torch.float64)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[:, :, top : top + height, left : left + width] = resized
    return (canvas - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def head_state(width: int, seed: int = 5) -> dict[str, Tensor]:
    """The five layers of the aesthetic predictor and ImageReward, under their names."""
    r, sizes = Random(seed), [width, 1024, 128, 64, 16, 1]
    layers = zip((0, 2, 4, 6, 7), zip(sizes[1:], sizes[:-1], strict=True), strict=True)
    return {name: value for index, (outputs, inputs) in layers for name, value in r.linear(f"layers.{index}", outputs, inputs).items()}


def head_output(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """The number that the five layers give, (batch,)."""
    x = features.double()
    for index in (0, 2, 4, 6, 7):
        x = linear(x, state[f"layers.{index}.weight"].double(), state[f"layers.{index}.bias"].double())
    return x[:, 0]
