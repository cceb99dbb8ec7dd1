import importlib.metadata
import importlib.util
import json
import re
import shutil

import pytest

from flowrl.cli import doctor
from flowrl.cli.main import main
from flowrl.config import asset_path
from flowrl.models.tiny import TINY
from robot.envs import check, needs

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


def test_with_a_config_its_answer_comes_first_and_the_environment_only_if_asked_for(capsys):
    assert printed(capsys, CONFIG)[1].startswith(f"config                 {CONFIG} is valid: RLTrainer\n")
    text = printed(capsys, CONFIG, "--environment")[1]
    assert text.startswith("python ")
    assert "extra robosuite" in text


@pytest.mark.parametrize(
    ("overrides", "extras"),
    [
        ((), set()),
        (("optimizer.target=flowrl.train.AdamW8bit", "trackers=[wandb]"), {"bitsandbytes", "wandb"}),
        (("reward={target: rewards.OCRAccuracy}", "model.attention=xformers"), {"ocr", "xformers"}),
        (("model.quantise=nf4",), {"bitsandbytes"}),
    ],
)
def test_only_the_extras_that_a_config_uses_are_listed(capsys, overrides, extras):
    text = printed(capsys, CONFIG, *overrides)[1]
    assert {line.split()[1] for line in text.splitlines() if line.startswith("extra ")} == extras


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


def test_a_model_of_a_hub_that_nothing_is_known_of_has_unknown_size_but_is_no_problem(capsys):
    status, text = printed(capsys, CONFIG, "model.path=nobody/nothing")
    assert (status, "nobody/nothing is not on this machine, and its architecture is not among the bundled ones" in text) == (0, True)


@pytest.mark.parametrize(
    ("removed", "target", "problem"),
    [
        ("vae", "StableDiffusion3", "pipeline lacks vae, which its model_index.json names"),
        ("transformer", "StableDiffusion3", "pipeline lacks transformer, which its model_index.json names"),
        (None, "Flux1", "pipeline holds a StableDiffusion3Pipeline, Flux1 reads a FluxPipeline; use flowrl.models.StableDiffusion3"),
    ],
)
def test_a_folder_without_a_part_or_of_another_pipeline_is_a_problem(capsys, tmp_path, removed, target, problem):
    folder = shutil.copytree(asset_path("models/digits_sd3"), tmp_path / "pipeline")
    if removed:
        shutil.rmtree(folder / removed)
    status, text = printed(capsys, CONFIG, f"model.target=flowrl.models.{target}", f"model.path={folder}")
    assert (status, f"problem: config.model: {tmp_path}/{problem}" in text) == (2, True)


def test_prompts_that_the_model_cannot_draw_are_a_problem(capsys, tmp_path):
    TINY["flux1_kontext"]().save_pretrained(tmp_path)
    size = ["model.height=16", "model.width=16"]
    status, text = printed(capsys, CONFIG, "model.target=flowrl.models.Flux1Kontext", f"model.path={tmp_path}", *size)
    assert (status, "names no picture to edit; write prompts for FLUX.1 Kontext into a .jsonl file" in text) == (2, True)


def test_the_plan_shows_memory_by_part_and_strategy_work_and_disk(capsys):
    status, text = printed(capsys, CONFIG)
    assert status == 0
    for line in (
        "SD3Transformer2DModel, 437,252 parameters",
        "a LoRA of rank 16",
        "TFLOP an update: rollout 9",
        "one GPU   DDP on 8   ZeRO-2 on 8   FSDP 2 on 8",
        "text encoders",
        "+ start, encoding prompts",
        "at most (with *)",
        "each checkpoint        552 KiB: weights 184 KiB, optimiser 368 KiB",
        "disk of the run        1.62 MiB: 2 checkpoints are kept",
    ):
        assert line in text, line


def test_a_run_that_does_not_fit_comes_with_what_to_change(capsys, tmp_path):
    file = tmp_path / "ddp.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n")
    status, text = printed(capsys, CONFIG, "--accelerate", str(file), "--memory", "1090MiB")
    assert status == 2
    assert "does not fit           DDP on 2" in text
    assert "problem: memory: DDP on 2 needs 1.08 GiB; with these it fits into 1.06 GiB: sampler.max_batch=128" in text
    status, text = printed(capsys, CONFIG, "sampler.max_batch=128", "--accelerate", str(file), "--memory", "1090MiB")
    assert (status, "fits                   DDP on 2" in text) == (0, True)


def test_one_strategy_that_fits_is_enough_where_several_are_shown(capsys):
    status, text = printed(capsys, CONFIG, "--memory", "1.05GiB")
    assert (status, "does not fit           one GPU" in text, "fits                   DDP on 8" in text) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--accelerate", "nowhere.yaml"), "no config file 'nowhere.yaml'"),
    ],
)
def test_what_the_plan_is_asked_for_must_make_sense(capsys, arguments, message):
    status, text = printed(capsys, CONFIG, *arguments)
    assert (status, message in text) == (2, True)


@pytest.mark.parametrize("amount", ["much", "24"])
def test_an_amount_of_memory_without_its_unit_is_refused_before_anything_is_read(capsys, amount):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "no/such_config", "--memory", amount])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "argument --memory: must be an amount such as 24GB" in error
    assert f"with its unit; got '{amount}'" in error


def test_groups_that_eight_processes_cannot_share_are_told_of_once(capsys):
    status, text = printed(capsys, CONFIG, "prompts_per_update=4")
    assert (status, text.count("set prompts_per_update=8,")) == (0, 1)
    assert "planning …" in text
    assert text.index("planning …") < text.index("TFLOP an update")


def test_groups_that_the_processes_of_an_accelerate_file_cannot_share_stand_in_the_way(capsys):
    status, text = printed(capsys, CONFIG, "prompts_per_update=4", "--accelerate", "configs/accelerate/ddp_8gpu.yaml")
    assert (status, "problem: prompts_per_update = 4 groups of 12 cannot be shared evenly by 8 processes" in text) == (2, True)


def test_the_strategy_of_a_config_s_own_command_comes_first(capsys, tmp_path, monkeypatch):
    file = tmp_path / "mine" / "mine.yaml"
    main(["configs", "copy", CONFIG, str(file)])
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "two.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n")
    launch = "accelerate launch --config_file configs/accelerate/two.yaml -m flowrl.cli.train mine.yaml"
    file.write_text(re.sub(r"# Command: .*", f"# Command: {launch}", file.read_text()))
    text = printed(capsys, str(file), "--memory", "1MiB")[1]
    assert "launched with          configs/accelerate/two.yaml, as the config's own command says" in text
    assert re.search(r"part +DDP on 2 +one GPU +DDP on 8", text)
    assert "; DDP on 2 needs" in text


def test_where_nothing_fits_only_what_helps_this_run_is_left(capsys):
    status, text = printed(capsys, CONFIG, "--memory", "1MiB")
    assert status == 2
    assert "too large              the network and its LoRA alone take" in text
    assert "problem: memory: the network and its LoRA alone take 1.85 MiB, more than the 1 MiB of the card; one GPU needs" in text
    problem = text[text.index("problem: memory") :]
    assert "model.lora" not in problem
    assert "AdamW8bit" not in problem
    assert "serve-reward" not in problem
    assert "presets" not in problem


def test_amounts_of_memory_are_read_as_cards_are_sold():
    from flowrl.cli.doctor_plan import bytes_of

    assert [bytes_of(text) for text in ("24GB", "1.5 GiB", "80gb", "512MiB")] == [24 * 10**9, 3 * 2**29, 80 * 10**9, 2**29]


def test_a_pretraining_config_is_checked_too(capsys):
    status, text = printed(capsys, "image/digits_pretrain")
    assert (status, "is valid: Pretrain" in text) == (0, True)


@pytest.fixture
def libraries(monkeypatch):
    """Pretend which versions are installed."""

    def pretend(**versions):
        def version(name):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(needs, "version", version)
        monkeypatch.setattr(needs, "find_spec", lambda module: module in versions)

    return pretend


@pytest.fixture
def robot_config(tmp_path):
    """A file that describes a component of robots."""

    def write(**fields):
        file = tmp_path / "robot.yaml"
        file.write_text(json.dumps(fields))
        return str(file)

    return write


def test_every_robot_extra_has_a_row_and_an_absent_one_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(check.EXTRAS, "robomimic", (check.Library("no_such_module"),))
    status, text = printed(capsys)
    assert status == 0
    for extra in ("robot", "pusht", "metaworld", "robosuite", "robomimic"):
        assert f"\nextra {extra} " in text
    assert "extra robomimic        absent; pip install 'flowrl-torch[robomimic]'" in text


def test_a_mujoco_that_robosuite_cannot_use_is_to_be_mended(capsys, libraries, monkeypatch):
    monkeypatch.setattr(doctor, "_environment", list)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module in {"robosuite", "mujoco", "gymnasium"})
    libraries(robosuite="1.5.2", mujoco="4.0.0", gymnasium="1.4.0")
    status, text = printed(capsys)
    assert status == 2
    assert "extra robosuite        robosuite 1.5.2, mujoco 4.0.0, gymnasium 1.4.0; mujoco 4.0.0 does not work here" in text
    assert "problem: extra robosuite: mujoco 4.0.0 does not work here, it takes >=3.3,<3.10" in text
    assert "extra metaworld        absent" in text


def test_robots_starts_the_simulators_and_draws(capsys, monkeypatch):
    monkeypatch.setattr(check, "SIMULATORS", ("robosuite", "pusht"))
    monkeypatch.setattr(check, "extra_problems", lambda extra: [])
    monkeypatch.setattr(check, "installed", lambda extra: "1.0")
    monkeypatch.setattr(check, "import_problem", {"robosuite": None, "gym_pusht": "OSError: libSDL"}.get)
    monkeypatch.setattr(check, "gl_problems", lambda: ["MuJoCo cannot draw"])
    status, text = printed(capsys, "--robots")
    assert status == 2
    for line in (
        "\nrobosuite              starts",
        "\ngym_pusht              fails",
        "\ndrawing                fails",
        "problem: gym_pusht is installed and fails (OSError: libSDL); pip install --force-reinstall 'flowrl-torch[pusht]'",
        "problem: MuJoCo cannot draw",
    ):
        assert line in text


def test_without_robots_no_simulator_is_tried(capsys, monkeypatch):
    monkeypatch.setattr(check, "tried", lambda *arguments: pytest.fail("started a process"))
    assert printed(capsys)[0] == 0


@pytest.mark.parametrize(("problems", "status", "says"), [([], 0, "Lift runs here"), (["no mujoco"], 2, "Lift does not run here")])
def test_the_environment_of_a_config_is_asked_what_is_wrong(capsys, monkeypatch, robot_config, problems, status, says):
    monkeypatch.setattr("robot.envs.robosuite.extra_problems", lambda extra: problems)
    env = {"target": "robot.envs.Robosuite", "task": "Lift"}
    found, text = printed(capsys, robot_config(target="robot.demonstrations.Recording", env=env, out="x.hdf5", seeds="0:2"))
    assert found == status
    assert f"config.env             {says}" in text
    assert ("problem: config.env: no mujoco" in text) == bool(problems)


def test_videos_need_something_to_draw_with(capsys, monkeypatch, robot_config):
    monkeypatch.setattr("robot.envs.robosuite.extra_problems", lambda extra: [])
    monkeypatch.setattr(check, "installed", lambda extra: "1.0")
    monkeypatch.setattr(check, "extra_problems", lambda extra: [])
    monkeypatch.setattr(check, "gl_problems", lambda: ["MuJoCo cannot draw"])
    rollout = {
        "target": "robot.evaluation.Rollout",
        "env": {"target": "robot.envs.NoisySensors", "env": {"target": "robot.envs.Robosuite"}},
        "policy": {"target": "robot.envs.toy_policy.ToyPolicy", "bias": 0.1},
        "run_dir": "runs/x",
    }
    status, text = printed(capsys, robot_config(**rollout))
    assert (status, "problem: config.videos: MuJoCo cannot draw; or set videos=0" in text) == (2, True)
    assert printed(capsys, robot_config(**rollout, videos=0))[0] == 0


@pytest.mark.parametrize("config", ["smoke/robot_wam", "smoke/robot_bc_flow"])
def test_training_on_demonstrations_shows_what_there_is_to_learn_from_and_who_can_share_a_batch(config, capsys):
    status, text = printed(capsys, config, "batch_size=36", "steps=100")
    assert status == 0
    steps, examples = {"smoke/robot_wam": (320, 288), "smoke/robot_bc_flow": (160, 144)}[config]  # 40 episodes of 8 or 4, 36 to train on
    for line in (
        f"40 episodes, 4 held out, {steps} control steps",
        f"100 steps of 36, {100 * 36 / examples:g} times through {examples} examples",
        "on 2 processes       18 each",
        "on 8 processes       set batch_size=32 or 40,",
    ):
        assert line in text


def test_demonstrations_that_cannot_be_learned_from_are_a_problem(capsys, tmp_path):
    status, text = printed(capsys, "robot/wam_pusht", f"demonstrations.path={tmp_path / 'none.hdf5'}")
    assert status == 2
    assert "problem: config: there is no file" in text


def test_a_gate_s_groups_are_told_and_a_model_that_is_not_there_stands_in_the_way(capsys):
    status, text = printed(capsys, "robot/gate_demo")
    assert status == 0
    for line in ("8 of 8 per update: 64 episodes", "at most 9,600 control steps", "640 episodes", "wam_pusht.safetensors"):
        assert line in text, line
    status, text = printed(capsys, "robot/gate_demo", "model.path=runs/nowhere")
    assert status == 2
    assert "config.model: there is no world-action model runs/nowhere" in text
