"""Objects in pictures: the loading path on small random networks, the reward on detections made by hand."""

import json

import pytest
import torch
from tiny_detectors import save_clip, save_grounding_dino, save_owlv2

from flowrl.errors import RewardError
from flowrl.rl import Prompt
from flowrl.testing import check_reward
from rewards import GenEval
from rewards.clip_models import ClipSource, load_clip
from rewards.detectors import DetectorSource, load_detector
from rewards.diversity import ClipFeatures
from rewards.geneval import colours_of
from rewards.object_checks import COLOURS, Detection
from rewards.published import CLIP_VIT_L14
from rewards.self_test import run_self_test

CPU = torch.device("cpu")
TWO_APPLES = Prompt("two apples", facts={"tag": "counting", "include": [{"class": "apple", "count": 2}]})
RED_APPLE = Prompt("a red apple", facts={"tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}]})
CAT = Prompt("a cat", facts={"include": [{"class": "cat", "count": 1}], "exclude": [{"class": "dog", "count": 1}]})


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    return save_owlv2(tmp_path_factory.mktemp("owl"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 40, 60, generator=torch.Generator().manual_seed(0))


class ByHand:
    """Finds one apple for every white pixel in the top row, and a cat in pictures whose last pixel is white."""

    def __init__(self):
        self.calls = []

    def __call__(self, samples, names, *, threshold):
        self.calls.append((len(samples), names))
        return [self._found(picture) for picture in samples]

    def _found(self, picture):
        apples = [Detection(name="apple", score=0.25, box=(x, 0, x + 1, 4)) for x in range(8) if picture[:, 0, x].min() > 0.9]
        cat = [Detection(name="cat", score=0.9, box=(0, 0, 8, 8))] if picture[:, -1, -1].min() > 0.9 else []
        return apples + cat


class MeanColour:
    """A stand-in for CLIP whose features are red, green and blue."""

    def __init__(self):
        self.words = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}

    def pixels(self, samples):
        return samples.mean(dim=(2, 3))

    def image_features(self, crops):
        return crops

    def text_features(self, texts):
        word = {colour for text in texts for colour in COLOURS if f" {colour}" in text}.pop()
        return torch.tensor([self.words.get(word, (-1.0, -1.0, -1.0))] * len(texts))


@pytest.fixture
def by_hand(monkeypatch):
    detector = ByHand()
    monkeypatch.setattr("rewards.geneval.load_detector", lambda source, device, dtype: detector)
    monkeypatch.setattr("rewards.geneval.load_clip", lambda source, device, dtype: MeanColour())
    return detector


def test_boxes_are_those_of_transformers_own_processor_and_network(owl, pictures):
    from PIL import Image
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    found = load_detector(DetectorSource(checkpoint=str(owl)), CPU, torch.float32)(pictures, ("cat", "dog"))
    processor, network = Owlv2Processor.from_pretrained(owl), Owlv2ForObjectDetection.from_pretrained(owl)
    for picture, boxes in zip(pictures, found, strict=True):
        image = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
        with torch.no_grad():
            outputs = network(**processor(text=["a photo of a cat", "a photo of a dog"], images=image, return_tensors="pt"))
        best = outputs.logits[0].sigmoid().max(-1)
        x, y, width, height = (outputs.pred_boxes[0] * 60).unbind(-1)  # OWLv2 pads to a square of the longer side
        corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        assert [box.name for box in boxes] == [("cat", "dog")[index] for index in best.indices]
        torch.testing.assert_close(torch.tensor([box.score for box in boxes]), best.values, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.tensor([box.box for box in boxes]), corners, atol=1e-3, rtol=1e-4)


def test_grounding_dino_is_asked_for_one_name_at_a_time(tmp_path, pictures):
    detector = load_detector(DetectorSource(checkpoint=str(save_grounding_dino(tmp_path))), CPU, torch.float32)
    both, cats = detector(pictures, ("cat", "dog")), detector(pictures, ("cat",))
    assert [len(boxes) for boxes in both] == [16] * 3  # 8 queries a name
    assert [[box.name for box in boxes] for boxes in both] == [["cat"] * 8 + ["dog"] * 8] * 3
    torch.testing.assert_close([box.score for box in both[0][:8]], [box.score for box in cats[0]])
    few = detector(pictures, ("cat",), threshold=sorted(box.score for box in cats[0])[5])
    assert len(few[0]) == 2


def test_a_picture_is_judged_by_its_own_prompt_and_pictures_of_one_prompt_go_together(by_hand):
    pictures = torch.zeros(5, 3, 8, 8)
    pictures[1, :, 0, 0] = pictures[2, :, 0, [0, 4]] = pictures[3, :, -1, -1] = 1
    scores = GenEval(counting_threshold=0.2)(pictures, [TWO_APPLES, TWO_APPLES, TWO_APPLES, CAT, CAT]).parts
    assert scores["geneval"].tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert scores["geneval_correct"].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert by_hand.calls == [(3, ("apple",)), (2, ("cat", "dog"))]


def test_counting_has_a_threshold_of_its_own_and_distractors_are_asked_for_too(by_hand):
    picture = torch.zeros(1, 3, 8, 8)
    picture[:, :, 0, [0, 4]] = 1
    assert GenEval(counting_threshold=0.3)(picture, [TWO_APPLES]).parts["geneval"].item() == 0.0
    assert GenEval(counting_threshold=0.2, distractors=("pear", "apple"))(picture, [TWO_APPLES]).parts["geneval"].item() == 1.0
    assert by_hand.calls[-1] == (1, ("apple", "pear"))


def test_the_colour_is_that_of_the_object_and_not_of_the_picture(by_hand):
    pictures = torch.zeros(2, 3, 8, 8)
    pictures[:, 2] = 0.8  # blue
    pictures[:, :, 0, 0] = 1  # where the apple is found, one pixel wide
    pictures[0, :, 1:4, 0] = torch.tensor([1.0, 0, 0])[:, None]
    verdicts = GenEval().verdicts(pictures, [RED_APPLE] * 2)
    assert [verdict.correct for verdict in verdicts] == [True, False]
    assert verdicts[1].reasons == ("apple: blue; red wanted",)
    assert verdicts[1].score == pytest.approx(0.5)


def test_colours_are_clips_nearest_mean_of_three_templates(clip):
    network = load_clip(ClipSource(checkpoint=str(clip), published=CLIP_VIT_L14), CPU, torch.float32)
    picture = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1))
    boxes = [(0.0, 0.0, 20.0, 30.0), (-5.0, 10.2, 60.0, 90.0), (47.9, 31.9, 48.0, 32.0)]
    cuts = [picture[:, 0:30, 0:20], picture[:, 10:32, 0:48], picture[:, 31:32, 47:48]]
    expected = []
    for cut in cuts:
        image = network.image_features(network.pixels(cut[None]))[0]
        likeness = {}
        for colour in COLOURS:
            texts = [f"a photo of a {colour} cat", f"a photo of a {colour}-colored cat", f"a photo of a {colour} object"]
            mean = network.text_features(texts).mean(0)
            likeness[colour] = float(image @ mean / mean.norm())
        expected.append(max(likeness, key=likeness.get))
    assert colours_of(network, picture, "cat", [Detection(name="cat", score=1.0, box=box) for box in boxes]) == expected


def test_genevals_own_file_is_a_prompt_file(tmp_path, by_hand):
    from flowrl.train.prompts import load_prompts

    lines = [{"tag": "counting", "include": [{"class": "apple", "count": 2}], "prompt": "a photo of two apples"}]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prompts = load_prompts(str(tmp_path / "evaluation_metadata.jsonl"))
    assert GenEval()(torch.ones(1, 3, 8, 8), prompts).parts["geneval"].shape == (1,)


def test_geneval_keeps_the_contract_on_a_real_network(owl, clip, pictures):
    reward = GenEval(detector=str(owl), clip=str(clip), threshold=0.0, batch=2)
    reward.load()
    check_reward(reward, pictures, [TWO_APPLES, CAT, RED_APPLE])
    pictures[1, 0, 0, 0] = torch.nan
    scores = reward(pictures, [TWO_APPLES, CAT, RED_APPLE]).parts
    assert [part.isnan().tolist() for part in scores.values()] == [[False, True, False]] * 2


def test_a_random_network_fails_the_self_test(owl, clip):
    (problem,) = run_self_test(GenEval(detector=str(owl), clip=str(clip), threshold=0.0)).problems
    assert problem.startswith("GenEval: every score is 1, whatever the picture and the prompt")


def test_a_detector_whose_weights_do_not_fit_is_refused(owl, tmp_path):
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    network = Owlv2ForObjectDetection.from_pretrained(owl)
    state = {name: value for name, value in network.state_dict().items() if "class_head" not in name}
    network.save_pretrained(tmp_path, state_dict=state)
    Owlv2Processor.from_pretrained(owl).save_pretrained(tmp_path)
    with pytest.raises(RewardError, match=r"lack class_head\.dense0\.bias, .* in all; OWLv2 is google/owlv2-large-patch14-ensemble"):
        load_detector(DetectorSource(checkpoint=str(tmp_path)), CPU, torch.float32)
    with pytest.raises(RewardError, match="has the SHA-256"):
        load_detector(DetectorSource(checkpoint=str(owl), sha256="0" * 64), CPU, torch.float32)
    with pytest.raises(RewardError, match=r"the detector .*nowhere cannot be read \(.*hf download google/owlv2"):
        load_detector(DetectorSource(checkpoint=str(tmp_path / "nowhere")), CPU, torch.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1"),
        ({"counting_threshold": -0.1}, "counting_threshold must lie"),
        ({"overlap": 0.0}, r"overlap must lie in \(0, 1\] and batch must be >= 1, got 0.0 and 8"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        GenEval(**settings)


def test_prompts_without_genevals_facts_are_found_before_a_rollout():
    GenEval().check_prompts([CAT, RED_APPLE])
    with pytest.raises(ValueError, match="GenEval needs the fact 'include' of each prompt"):
        GenEval().check_prompts([CAT, "a cat"])


def test_networks_are_loaded_once_whether_the_first_gpu_is_called_cuda_or_cuda_0(monkeypatch):
    """The trainer loads on ``cuda``, samples lie on ``cuda:0``."""
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for module in ("geneval", "diversity"):
        monkeypatch.setattr(f"rewards.{module}.load_clip", lambda source, device, dtype: asked.append(device))
    monkeypatch.setattr("rewards.geneval.load_detector", lambda source, device, dtype: asked.append(device))
    for device in ("cuda", "cuda:0"):
        GenEval().load(device)
        GenEval(device=device).load("cpu")
        ClipFeatures().load(device)
    assert asked == [torch.device("cuda:0")] * 10
