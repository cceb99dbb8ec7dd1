"""What is FLUX.1 Kontext's own: the picture to edit, a part of the prompt's facts."""

import pytest
import torch
from flux_cases import flux1_kontext
from harness import ode_samples, standard_noise, two_updates
from PIL import Image

from flowrl.errors import ConfigError
from flowrl.models import Flux1Kontext
from flowrl.models.texts import encoder_identity
from flowrl.rl import Prompt


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """FLUX.1 Kontext in small, with three pictures."""
    return flux1_kontext(tmp_path_factory.mktemp("kontext"))


def with_picture(folder, picture, name="picture.png"):
    picture.save(folder / name)
    return Prompt("red", facts={"image": str(folder / name)})


def test_a_picture_to_edit_may_have_another_size_than_the_drawn_one(case):
    model = case.load(image_height=8, image_width=12)
    noise = standard_noise(model, 3)
    assert model.encode(case.prompts).tensors["image_tokens"].shape == (3, 6, 16)
    expected = case.drawn(noise, size=(8, 12))
    torch.testing.assert_close(ode_samples(model, case.prompts, noise), expected, atol=1e-5, rtol=0)
    assert (expected - case.drawn(noise)).abs().max() > 1e-3


def test_one_text_about_two_pictures_is_two_prompts(case, tmp_path):
    model = case.load()
    black, white = (with_picture(tmp_path, Image.new("RGB", (16, 16), color), f"{color}.png") for color in ("black", "white"))
    tokens = model.encode([black, white, black]).tensors
    assert torch.equal(tokens["prompt_embeds"][0], tokens["prompt_embeds"][1])
    assert torch.equal(tokens["image_tokens"][0], tokens["image_tokens"][2])
    assert (tokens["image_tokens"][0] - tokens["image_tokens"][1]).abs().max() > 1e-3


def test_pictures_of_any_mode_are_read_as_they_are_looked_at(case, tmp_path):
    """A grey picture lying on its side, as cameras save them: orientation 6 is turned clockwise to stand."""
    upright = torch.arange(0, 256, 16, dtype=torch.uint8).expand(16, 16).contiguous()
    lying = Image.fromarray(upright.rot90(1).contiguous().numpy())
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    colored = with_picture(tmp_path, Image.fromarray(upright[..., None].expand(16, 16, 3).contiguous().numpy()))
    turned = Prompt("red", facts={"image": str(tmp_path / "lying.png")})
    tokens = case.load().encode([colored, turned]).tensors["image_tokens"]
    assert torch.equal(tokens[0], tokens[1])


def test_both_halves_of_guidance_see_the_picture(case):
    model = case.load(guidance_scale=3.0, negative_prompt="green")
    seen = []
    model.module.register_forward_hook(lambda _module, _args, inputs, _out: seen.append(inputs["hidden_states"]), with_kwargs=True)
    model.field()(standard_noise(model, 1), 0.5, model.encode(case.prompts[:1]))
    assert seen[0].shape == (2, 32, 16)
    assert torch.equal(seen[0][0], seen[0][1])


def test_a_prompt_without_a_picture_is_refused_with_what_to_write(case):
    with pytest.raises(ValueError, match=r"the prompt 'red' names no picture to edit; write prompts .* into a \.jsonl file"):
        case.load().encode(["red"])


@pytest.mark.parametrize("content", [None, b"no picture"], ids=["missing", "broken"])
def test_a_picture_that_cannot_be_read_is_refused(case, tmp_path, content):
    file = tmp_path / "broken.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the picture .*broken\.png of the prompt 'red': .*; give a picture file"):
        case.load().encode([Prompt("red", facts={"image": str(file)})])


def test_a_size_of_the_picture_to_edit_that_cuts_a_token_is_refused(case):
    with pytest.raises(ConfigError, match=r"image_height and image_width must be multiples of 4 for .*, got 16 x 18"):
        case.load(image_width=18)


def test_a_picture_without_pixels_is_refused(case):
    with pytest.raises(ConfigError, match="image_height must be at least 1, got 0; leave it out for the size of the pictures drawn"):
        case.source(image_height=0)


@pytest.mark.parametrize("text_encoders", ["keep", "drop"])
def test_a_run_with_a_prompt_that_has_no_picture_is_refused_before_anything_loads(text_encoders, tmp_path):
    source = Flux1Kontext(path=str(tmp_path / "nowhere"), text_encoders=text_encoders)
    prompts = [with_picture(tmp_path, Image.new("RGB", (8, 8))), "red"]
    with pytest.raises(ValueError, match=r"the prompt 'red' names no picture to edit"):
        two_updates(source, tmp_path, prompts)


@pytest.mark.parametrize("option", [{"decoder_dtype": "bfloat16"}, {"decode_tile": 64}])
def test_cached_pictures_are_not_those_of_another_autoencoder_s_arithmetic(case, option):
    assert encoder_identity(case.source(**option)) != encoder_identity(case.source())
