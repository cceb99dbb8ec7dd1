"""The aesthetic predictor: published layers on the features of a small CLIP."""

import pytest
import scorers
import torch

from flowrl.errors import RewardError
from flowrl.testing import check_reward
from rewards import Aesthetic

SAMPLES = scorers.pictures(3, 56, 90)  # as high as the network sees: cropped, not resized, so equal to the last bit


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small CLIP of 768 features, a file of layers of the published shapes, and both checkpoints."""
    tokenizer, clip = tmp_path_factory.mktemp("tokenizer"), tmp_path_factory.mktemp("clip")
    words = scorers.vocabulary_size(scorers.tokenizer_folder(tokenizer))
    state = scorers.saved_open_clip(clip, words, features=768, image=56)
    scorers.tokenizer_folder(clip)
    head = scorers.head_state(768)
    torch.save(head, clip / "aesthetic-model.pth")
    return clip, state, head


def test_the_rating_is_five_linear_layers_on_the_unit_vector_of_the_features(folders):
    clip, state, head = folders
    features = scorers.clip_image_embedding(state, scorers.pillow_pixels(SAMPLES, size=56))
    expected = scorers.head_output(head, features / features.norm(dim=-1, keepdim=True))
    reward = Aesthetic(checkpoint=str(clip / "aesthetic-model.pth"), clip=str(clip))
    scores = reward(SAMPLES, ["one", "two", "three"]).parts["aesthetic"]
    assert expected.std() > 0.01
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


def test_the_prompt_plays_no_part_and_the_contract_is_kept(folders):
    reward = Aesthetic(checkpoint=str(folders[0] / "aesthetic-model.pth"), clip=str(folders[0]), batch=2)
    one, other = (reward(SAMPLES, [text] * 3).parts["aesthetic"] for text in ("a cat", "a dog"))
    assert torch.equal(one, other)
    check_reward(reward, SAMPLES, ["", "", ""], tolerance=1e-4)


def test_the_sha256_of_layers_and_clip_is_checked(folders):
    paths = {"checkpoint": str(folders[0] / "aesthetic-model.pth"), "clip": str(folders[0])}
    for wrong in ({"sha256": "0" * 64}, {"clip_sha256": "0" * 64}):
        with pytest.raises(RewardError, match="it is damaged or another file"):
            Aesthetic(**paths, **wrong).load()


def test_a_few_blocks_of_a_photograph_are_what_its_known_answer_asks_about():
    (case,) = Aesthetic().known_answers()
    assert case.order == ((0, 3), (1, 4), (2, 5))
    changes = case.pictures.diff(dim=-1).abs().mean(dim=(1, 2, 3))
    assert (changes[3:] < changes[:3]).all()  # the second three are the blurred ones


def test_layers_for_other_features_are_refused(folders, tmp_path):
    torch.save(scorers.head_state(512), tmp_path / "other.pth")
    reward = Aesthetic(checkpoint=str(tmp_path / "other.pth"), clip=str(folders[0]))
    with pytest.raises(RewardError, match="gives 768 features, the layers on top want 512"):
        reward(SAMPLES, [""] * 3)


def test_layers_that_are_missing_or_do_not_follow_one_another_are_refused(folders, tmp_path):
    head = dict(folders[2])
    torch.save({name: value for name, value in head.items() if name != "layers.6.bias"}, tmp_path / "short.pth")
    torch.save(head | {"layers.7.weight": torch.zeros(2, 16), "layers.7.bias": torch.zeros(2)}, tmp_path / "two.pth")
    with pytest.raises(RewardError, match=r"layers\.6\.bias are missing"):
        Aesthetic(checkpoint=str(tmp_path / "short.pth"), clip=str(folders[0])).load()
    with pytest.raises(RewardError, match="do not follow one another down to one number"):
        Aesthetic(checkpoint=str(tmp_path / "two.pth"), clip=str(folders[0])).load()
