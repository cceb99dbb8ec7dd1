import pytest

from flowrl.cli import doctor
from flowrl.cli.main import main

CONFIG = "image/digits_g2rpo"


def printed(capsys, *arguments) -> tuple[int, str]:
    status = main(["doctor", *arguments])
    return status, capsys.readouterr().out


def test_the_environment_alone(capsys):
    status, text = printed(capsys)
    assert (status, "Nothing stands in the way." in text) == (0, True)
    for name in ("python", "torch", "diffusers", "device", "extra wandb", "torchvision"):
        assert f"\n{name}" in f"\n{text}"


def test_an_absent_extra_comes_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "no_such_module", "wandb")
    assert "absent; pip install 'flowrl-torch[wandb]'" in printed(capsys)[1]


def test_a_torchvision_that_does_not_load_is_named_with_the_remedy(capsys, monkeypatch, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    status, text = printed(capsys)
    assert status == 2
    assert "operator torchvision::nms does not exist); pip uninstall torchvision" in text


def test_a_good_config_shows_groups_and_cost(capsys):
    status, text = printed(capsys, CONFIG, "prompts_per_update=4", "sampler.group_size=12", "sampler.sde_indices=[0,1,2,3,4]", "updates=3")
    assert status == 0
    for line in (
        f"{CONFIG} is valid: RLTrainer",
        "4 of 12 per update",
        "on 2 processes       2 each",
        "on 8 processes       set prompts_per_update=8,",
        "2,132 network evaluations, 480 pictures",  # 4 prompts: anchor 5, branches 12 * (12 + 10 + 9 + 7 + 6)
        "6,396 network evaluations in 3 updates",
        "memory",
        "LoRA",
    ):
        assert line in text


def test_all_errors_of_a_config_are_listed_at_once(capsys, tmp_path):
    main(["configs", "copy", CONFIG, str(tmp_path / "mine.yaml")])
    file = tmp_path / "mine.yaml"
    text = file.read_text().replace("noise_level: 0.7", "noise_levle: 0.7").replace("group_size: 12", "group_size: many")
    file.write_text(text.replace("samplers.ODESampler", "samplers.ODESampelr"))
    status, text = printed(capsys, str(file))
    assert status == 2
    assert "did you mean 'noise_level'" in text
    assert "config.sampler.group_size: SingularStochasticSampler expects int, got 'many'" in text
    assert "did you mean 'ODESampler'" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=nowhere", "no such folder: 'nowhere'"),
        ("prompts=nowhere.txt", "config.prompts: cannot read the prompt file nowhere.txt"),
        ("sampler.group_size=1", "group_size must be at least 2, got 1"),
        ("sampler.sde_indices=[0,99]", "99"),
        ("evaluation.prompts=nowhere.txt", "cannot read the prompt file nowhere.txt"),
    ],
)
def test_what_would_stop_a_run_is_found_before_it(capsys, override, message):
    status, text = printed(capsys, CONFIG, override)
    assert status == 2
    assert message in text


def test_a_model_of_a_hub_has_unknown_size_but_is_no_problem(capsys):
    status, text = printed(capsys, CONFIG, "model.path=stabilityai/stable-diffusion-3.5-medium")
    assert (status, "is not on this machine, so its size is unknown here" in text) == (0, True)


def test_a_pretraining_config_is_checked_too(capsys):
    status, text = printed(capsys, "image/digits_pretrain")
    assert (status, "is valid: Pretrain" in text) == (0, True)
