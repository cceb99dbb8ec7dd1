"""The back end open_clip, in a process of its own: it brings torchvision, which must not reach the other tests.

`OPEN_CLIP` is where `make test` installs it (``.venv/open-clip``), or the folder in FLOWRL_OPEN_CLIP.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scorers
import torch

from rewards import CLIPScore, HPSv2

ROOT = Path(__file__).parents[2]
OPEN_CLIP = Path(os.environ.get("FLOWRL_OPEN_CLIP", ROOT / ".venv" / "open-clip"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (OPEN_CLIP / "open_clip").is_dir(), reason=f"open_clip is not installed in {OPEN_CLIP}"),
]

PROMPTS = (
    "An astronaut\u2019s glove, \u201cNASA 2049\u201d &amp; a \ufb01sh",
    "a  photo of 3 cats!!  \u00e9t\u00e9 \uff21\uff22",
    "portrait, 8k, (masterpiece:1.2) don't — it's",
    " ".join(["a very long prompt"] * 40),
    "\u79cb\u306e\u7530 \U0001f600 na\u00efve \u01c4 zero\u200bwidth\x07",
    "Q&amp;amp;A &lt;b&gt;",
)

SCRIPT = """
import json, sys
import torch
from rewards.open_clip_backend import mend_torchvision

mend_torchvision()
import open_clip
import torchvision.transforms.functional as F
from rewards import CLIPScore, HPSv2

torch.set_num_threads(1)
folder, answers = sys.argv[1:]
given = torch.load(f"{folder}/given.pt", weights_only=True)
samples, prompts = given["samples"], json.load(open(f"{folder}/prompts.json"))

# HPSv2 as published: the picture as numbers, torchvision's resize of a tensor, black borders, normalise, cosine without a logit scale.
state = torch.load(f"{folder}/HPS.pt", weights_only=True)["state_dict"]
vision = dict(image_size=224, layers=2, width=160, head_width=80, patch_size=14, mlp_ratio=2.0)
text = dict(context_length=77, vocab_size=49408, width=128, heads=2, layers=2, mlp_ratio=2.0)
network = open_clip.CLIP(48, vision, text).eval()
network.load_state_dict(state)
scores = []
for sample, prompt in zip(samples, prompts):
    height, width = sample.shape[1:]
    size = [round(side * 224 / max(height, width)) for side in (height, width)]
    numbers = F.resize(sample, size, F.InterpolationMode.BICUBIC)
    rest = [224 - side for side in size]
    padding = [rest[1] // 2, rest[0] // 2, rest[1] - rest[1] // 2, rest[0] - rest[0] // 2]
    pixels = F.normalize(F.pad(numbers, padding), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)[None]
    with torch.no_grad():
        image, words = network.encode_image(pixels, normalize=True), network.encode_text(open_clip.tokenize([prompt]), normalize=True)
    scores.append(float(image @ words.T))

before = torch.random.get_rng_state()
found = {
    "published": scores,
    "tokens": [[int(token) for token in row if token] for row in open_clip.tokenize(prompts)],
    "hps": HPSv2(checkpoint=f"{folder}/HPS.pt", backend="open_clip")(samples, prompts).parts["hpsv2"].tolist(),
    "clip": CLIPScore(checkpoint=f"{folder}/clip", backend="open_clip")(samples, prompts).parts["clip"].tolist(),
    "random numbers untouched": bool(torch.equal(before, torch.random.get_rng_state())),
}
json.dump(found, open(answers, "w"))
"""


def clip_vocabulary(folder):
    """transformers' files of CLIP's tokenizer, from open_clip's list of merges."""
    from flowrl.models.tiny.words import byte_symbols

    with gzip.open(OPEN_CLIP / "open_clip" / "bpe_simple_vocab_16e6.txt.gz") as file:
        lines = file.read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = byte_symbols()
    order = [symbols[code] for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173)]
    tokens = [
        *order,
        *(symbol + "</w>" for symbol in order),
        *("".join(line.split()) for line in lines),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What open_clip's process found, and the folder it read."""
    folder = tmp_path_factory.mktemp("open_clip")
    samples = (scorers.pictures(len(PROMPTS), 60, 90) * 255).round() / 255
    torch.save({"samples": samples}, folder / "given.pt")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    torch.save({"state_dict": scorers.open_clip_state(49408)}, folder / "HPS.pt")
    scorers.saved_open_clip(folder / "clip", 49408, quick_gelu=True, image=56, seed=3)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(OPEN_CLIP)])}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(folder / "answers.json")]
    subprocess.run(command, check=True, env=environment, cwd=folder)
    return json.loads((folder / "answers.json").read_text()), clip_vocabulary(folder / "tokenizer"), samples


def test_hpsv2_of_either_back_end_is_the_published_score(both):
    found, tokenizer, samples = both
    published = torch.tensor(found["published"])
    here = HPSv2(checkpoint=str(tokenizer.parent / "HPS.pt"), tokenizer=str(tokenizer))(samples, PROMPTS).parts["hpsv2"]
    torch.testing.assert_close(here, published, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(found["hps"]), published, atol=2e-6, rtol=0)
    assert published.std() > 0.02


def test_clip_score_of_both_back_ends_is_the_same(both):
    found, tokenizer, samples = both
    here = CLIPScore(checkpoint=str(tokenizer.parent / "clip"), tokenizer=str(tokenizer))(samples, PROMPTS).parts["clip"]
    torch.testing.assert_close(torch.tensor(found["clip"]), here, atol=2e-6, rtol=0)


def test_cleaned_texts_have_open_clips_tokens(both):
    from rewards.published import CLIP_TOKENIZER
    from rewards.texts import cleaned_text, read_tokenizer

    found, folder, _ = both
    tokenizer = read_tokenizer("CLIPTokenizer", str(folder), CLIP_TOKENIZER)
    tokens = [tokenizer(cleaned_text(prompt), truncation=True, max_length=77).input_ids for prompt in PROMPTS]
    assert tokens == found["tokens"]
    assert tokens[0] != tokenizer(PROMPTS[0]).input_ids  # without cleaning they are others


def test_loading_open_clip_leaves_the_random_numbers_as_they_were(both):
    assert both[0]["random numbers untouched"]
