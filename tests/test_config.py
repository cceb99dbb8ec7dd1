import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import robot
from flowrl.config import asset_path, bundled_configs, config_path, instantiate, load_config, validate
from flowrl.config.fit import Misfit, fit, hint_name
from flowrl.errors import ConfigError
from flowrl.flow import CPS, FlowSDE

CAR = {"target": "robot.parts.Car", "engine": {"target": "robot.parts.Motor", "power_w": 50}}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(robot, "__path__", [*robot.__path__, str(Path(__file__).parent / "config_parts")])
    yield importlib.import_module("robot.parts")
    sys.modules.pop("robot.parts", None)
    del robot.parts


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


# ------------------------------------------------------------------------------------------------------- building


def test_a_target_becomes_its_class_called_with_the_other_keys():
    assert instantiate({"target": "flowrl.flow.FlowSDE", "noise_level": 0.7}) == FlowSDE(noise_level=0.7)


def test_components_are_built_inside_out_through_mappings_and_lists(parts):
    car = instantiate(CAR | {"wheels": [{"target": "robot.parts.Wheel", "radius_m": 0.4}], "spare": {"target": "robot.parts.Wheel"}})
    assert car == parts.Car(engine=parts.Motor(power_w=50.0), wheels=(parts.Wheel(radius_m=0.4),), spare=parts.Wheel(radius_m=0.3))


def test_a_mapping_without_a_target_stays_a_mapping_of_built_values():
    built = instantiate({"dynamics": {"target": "flowrl.flow.CPS", "noise_level": 0.5}, "run_dir": "runs/x", "seeds": [1, 2]})
    assert built == {"dynamics": CPS(noise_level=0.5), "run_dir": "runs/x", "seeds": [1, 2]}


def test_a_class_that_is_no_dataclass_takes_the_arguments_of_its_init(parts):
    built = instantiate({"target": "robot.parts.Open", "size": 3, "more": 4})
    assert (built.size, built.rest) == (3, {"more": 4})
    assert validate({"target": "robot.parts.Open"}) == ["config: Open needs 'size'"]


def test_a_number_that_plain_yaml_reads_as_text_becomes_a_float_where_one_is_wanted():
    assert instantiate({"target": "flowrl.flow.FlowSDE", "noise_level": "7e-1"}) == FlowSDE(noise_level=0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dors": 5}, "config.dors: Car has no such field; did you mean 'doors'?"),
        ({"doors": 4.5}, "config.doors: Car expects int, got 4.5 (float)"),
        ({"doors": "1e3"}, "config.doors: Car expects int, got '1e3' (str)"),
        ({"doors": True}, "config.doors: Car expects int, got True (bool); true and false are not numbers"),
        ({"radio": 1}, "config.radio: Car expects bool, got 1 (int)"),
        ({"gears": [1, "fast"]}, "config.gears: Car expects tuple[float, ...], got [1, 'fast'] (list)"),
        ({"size_m": [1, 2, 3]}, "config.size_m: Car expects tuple[float, float], got [1, 2, 3] (list); it takes 2 values"),
        ({"weights": {"a": "b"}}, "config.weights: Car expects Mapping[str, float], got {'a': 'b'} (dict)"),
        ({"weights": [1]}, "config.weights: Car expects Mapping[str, float], got [1] (list)"),
        ({"colour": "green"}, "config.colour: Car expects Literal['red', 'blue'], got 'green' (str)"),
        ({"notes": "abc"}, "config.notes: Car expects Sequence[str], got 'abc' (str); write a list: [...]"),
        ({"spare": 3}, "config.spare: Car expects Wheel | None, got 3 (int)"),
        (
            {"spare": {"radius_m": 1}},
            "config.spare: Car expects Wheel | None, got {'radius_m': 1} (dict); a component is written as a mapping with 'target:'",
        ),
        ({"engine": 3}, "config.engine: Car expects Engine, got 3 (int); a component is written as a mapping with 'target:'"),
        ({"engine": {"target": "robot.parts.Motor", "power_w": -1.0}}, "config.engine: power_w must be > 0, got -1.0"),
        ({"engine": {"target": "robot.parts.Motor"}}, "config.engine: Motor needs 'power_w'"),
        (
            {"target": "torch.nn.Linear"},
            "config.target: 'torch.nn.Linear' is outside the packages flowrl, samplers, rewards, robot; a class of your own is named with",
        ),
        ({"target": "flowrl.flow.FlowSED"}, "config.target: flowrl.flow has no component 'FlowSED'; did you mean 'FlowSDE'?"),
        ({"target": "flowrl.flwo.FlowSDE"}, "config.target: flowrl has no module 'flwo'; did you mean 'flow'?"),
        ({"target": "robot.parts.make_car"}, "config.target: robot.parts.make_car is a function; a target names a class"),
        ({"target": "robot.parts._Hidden"}, "config.target: robot.parts has no component '_Hidden'"),
        ({"target": "robot.parts.Path"}, "config.target: robot.parts has no component 'Path'"),
        ({"target": "flowrl"}, "config.target: flowrl has no component ''"),
        ({"target": 3}, "config.target: must be a dotted name such as 'samplers.SDESampler', got 3"),
    ],
)
def test_what_is_wrong_is_said_with_its_dotted_place_and_a_remedy(parts, change, message):
    (error,) = validate(CAR | change)
    assert error.startswith(message)


def test_an_object_that_lacks_a_member_of_the_protocol_is_refused_by_the_member(parts):
    (error,) = validate(CAR | {"engine": {"target": "robot.parts.Wheel"}})
    assert error == "config.engine: Car expects Engine, got Wheel(radius_m=0.3) (Wheel); it has no 'power_w', 'start'"


def test_an_object_that_forwards_its_attributes_passes_for_any_protocol(parts):
    assert validate(CAR | {"engine": {"target": "robot.parts.Forwarder"}}) == []


def test_a_hint_that_only_the_type_checker_can_resolve_leaves_just_that_field_unchecked(parts):
    assert validate(CAR | {"price": "cheap"}) == []
    assert len(validate(CAR | {"price": "cheap", "doors": "four"})) == 1


def test_all_errors_are_reported_at_once_and_raised_together(parts):
    config = {"a": CAR | {"dors": 5, "doors": "x", "engine": {"target": "robot.parts.Moter"}}, "b": [{"target": "flowrl.flow.FlowSDE"}]}
    errors = validate(config)
    assert sorted(error.split(":")[0] for error in errors) == ["config.a.doors", "config.a.dors", "config.a.engine.target", "config.b.0"]
    with pytest.raises(ConfigError) as caught:
        instantiate(config)
    assert str(caught.value).splitlines() == errors


def test_an_error_of_a_component_keeps_its_cause(parts):
    with pytest.raises(ConfigError, match=r"^run\.model: power_w must be > 0") as caught:
        instantiate({"model": {"target": "robot.parts.Motor", "power_w": 0}}, place="run")
    assert type(caught.value.__cause__) is ValueError


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        ("1e-4", float, 1e-4),
        ("-.5E+2", float, -50.0),
        ("1e-4", float | None, 1e-4),
        ("1e-4", float | str, "1e-4"),
        (3, int | float, 3),
        (None, float | None, None),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([[1], [2, 3]], tuple[tuple[float, ...], ...], ((1.0,), (2.0, 3.0))),
        ([1, 2], list[float], [1.0, 2.0]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ("a/b", Path, Path("a/b")),
        ("a/b", str | Path, "a/b"),
        ([1, {"a": 2}], Any, [1, {"a": 2}]),
    ],
)
def test_values_are_coerced_only_towards_the_hint(value, hint, expected):
    fitted = fit(value, hint)
    assert fitted == expected
    assert type(fitted) is type(expected)


@pytest.mark.parametrize(("value", "hint"), [("nan", float), ("one", float), (True, float), (1.0, int), (False, int | None), ("5", int)])
def test_what_is_no_number_of_that_kind_does_not_pass_for_one(value, hint):
    with pytest.raises(Misfit):
        fit(value, hint)


def test_a_hint_is_named_as_a_reader_would_write_it():
    assert hint_name(float) == "float"
    assert hint_name(tuple[Path, ...] | None) == "tuple[Path, ...] | None"


# ----------------------------------------------------------------------------------------------- files and overrides


def test_a_config_file_is_read_with_its_references_resolved_after_the_overrides(write):
    path = write("group_size: 8\nsampler: {members: '${group_size}'}\nlearning_rate: 1e-4\n")
    expected = {"group_size": 4, "sampler": {"members": 4}, "learning_rate": 1e-4}
    assert load_config(path, ["group_size=4"]) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.lora.rank=8", {"lora": {"rank": 8}, "steps": [4, 5]}),
        ("model.steps.1=9", {"lora": {"rank": 4}, "steps": [4, 9]}),
        ("model.steps=[1,2,3]", {"lora": {"rank": 4}, "steps": [1, 2, 3]}),
        ("model.lora=null", {"lora": None, "steps": [4, 5]}),
        ("model.lora={alpha: 1e-4}", {"lora": {"alpha": 1e-4}, "steps": [4, 5]}),
        ("model.lora='a: b=c'", {"lora": "a: b=c", "steps": [4, 5]}),
    ],
)
def test_an_override_replaces_the_value_at_its_dotted_place(write, override, expected):
    assert load_config(write("model: {lora: {rank: 4}, steps: [4, 5]}\n"), [override]) == {"model": expected}


def test_an_override_may_name_a_field_that_the_file_leaves_at_its_default(write):
    path = write("dynamics: {target: flowrl.flow.FlowSDE}\n")
    assert load_config(path, ["dynamics.noise_level=0.5"])["dynamics"]["noise_level"] == 0.5


def test_an_override_may_set_up_a_component_that_the_file_leaves_out(parts, write):
    path = write("car: {target: robot.parts.Car, engine: {target: robot.parts.Motor, power_w: 1}}\n")
    config = load_config(path, ["car.spare.target=robot.parts.Wheel", "car.spare.radius_m=2"])
    assert instantiate(config)["car"].spare == parts.Wheel(radius_m=2.0)


def test_an_override_may_name_any_keyword_of_a_component_that_takes_any(parts, write):
    path = write("tool: {target: robot.parts.Open, size: 1}\n")
    assert load_config(path, ["tool.more=2"])["tool"]["more"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sampler.dynamics.noise_levle=1",
            r"config\.sampler\.dynamics\.noise_levle: FlowSDE has no such field; did you mean 'noise_level'\?",
        ),
        ("smapler.group_size=1", r"config\.smapler: no such key; did you mean 'sampler'\?"),
        ("sampler.dynamics.noise_level.x=1", r"config\.sampler\.dynamics\.noise_level\.x: .* is 0\.7 and has no keys"),
        ("times.2=1", r"config\.times\.2: config\.times is a list of 2; allowed here: 0 to 1"),
        ("lora.rank=1", r"config\.lora\.rank: config\.lora is not set; say first what it is: lora\.target="),
        ("lora", r"override 'lora' must read key=value"),
        ("=1", r"override '=1' must read key=value"),
        ("lora=", r"override 'lora=' has no value; write lora=null"),
        ("lora=[1", r"the value of override 'lora=\[1' is not YAML"),
        ("lora=a: b", r"the value of override 'lora=a: b' is not YAML"),
    ],
)
def test_an_override_that_names_nothing_or_reads_badly_is_refused(write, override, message):
    path = write("sampler: {dynamics: {target: flowrl.flow.FlowSDE, noise_level: 0.7}}\ntimes: [1.0, 0.0]\nlora: null\n")
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold a mapping of keys to values, it holds nothing"),
        (b"- 1\n", "must hold a mapping of keys to values, it holds a list"),
        (b"a: [1\n", "is not a YAML mapping"),
        (b"a: 1\na: 2\n", "duplicate key a"),
        (b"3.5\n", "is not a YAML mapping"),
        ("a: ä\n".encode("latin-1"), r"is not UTF-8 \(.* at byte 3\); save it as UTF-8"),
        (b"a: ${b}\n", r"config\.a: .*'b' not found"),
        (b"a: ???\n", r"config\.a: Missing mandatory value"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_what_it_is(write, content, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(content))


def test_a_config_that_is_neither_a_file_nor_bundled_is_refused():
    with pytest.raises(ConfigError, match="no config file 'image/nothing_of_that_name', nor a bundled config of that name"):
        config_path("image/nothing_of_that_name")


def test_every_bundled_config_is_found_by_name_with_and_without_its_folder_and_ending():
    for name in bundled_configs():
        assert config_path(name) == config_path(f"configs/{name}.yaml").absolute()


def test_an_asset_is_found_with_and_without_the_prefix_and_an_unknown_one_is_refused():
    names = sorted(path.name for path in asset_path("").iterdir())
    for name in names:
        assert asset_path(name) == asset_path(f"assets/{name}")
    with pytest.raises(ConfigError, match="no bundled asset 'assets/models/digits_sd4'; did you mean 'models/digits_sd3'"):
        asset_path("assets/models/digits_sd4")
    with pytest.raises(ConfigError, match=r"no bundled asset 'a/b'; allowed: .*models"):
        asset_path("a/b")


@pytest.mark.parametrize("name", bundled_configs())
def test_every_bundled_config_builds(name):
    assert validate(load_config(name)) == []


# --------------------------------------------------------------------------------------------------- foreign packages

INSTANTIATE = "from flowrl.config import validate; print(*validate({'target': 'robot.Robot'}, 'config.policy'))"


def run_beside(folder: Path) -> str:
    """Run with ``folder`` first on the path, where it hides our packages of the same names."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(robot.__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", INSTANTIATE], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_foreign_package_of_one_of_our_names_is_refused_by_its_file(tmp_path):
    foreign = tmp_path / "robot" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("class Robot: pass\n")
    message = run_beside(tmp_path)
    assert message.startswith(f"config.policy.target: the package 'robot' found first is not flowrl's but {foreign}; ")
    assert f"move {foreign} away, or install flowrl-torch into an environment of its own" in message


def test_a_foreign_package_is_named_by_the_distribution_that_installed_it(tmp_path):
    (tmp_path / "robot").mkdir()
    (tmp_path / "robot" / "__init__.py").touch()
    metadata = tmp_path / "robotframework-7.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: robotframework\nVersion: 7.0\n")
    (metadata / "top_level.txt").write_text("robot\n")
    message = run_beside(tmp_path)
    assert "(installed by robotframework); pip uninstall robotframework, or install" in message


def test_a_range_in_a_file_is_no_number_in_base_60(write):
    lines = [
        "seeds: 5:20  # not 7:30",
        "clock: [1:30, 10:20:30]",
        "quoted: '2:30'",
        "zeit: 0:50",
        "inside: {a: 5:20}",
        "ü: 3:15",
        "number: 520",
    ]
    found = load_config(write("\n".join(lines)))
    assert found == {
        "seeds": "5:20",
        "clock": ["1:30", "10:20:30"],
        "quoted": "2:30",
        "zeit": "0:50",
        "inside": {"a": "5:20"},
        "ü": "3:15",
        "number": 520,
    }


def test_a_range_inside_an_override_is_no_number_in_base_60(write):
    assert load_config(write("a: {b: 1}\n"), ["a={b: 5:20, c: [1:30]}"]) == {"a": {"b": "5:20", "c": ["1:30"]}}


def test_a_range_on_the_command_line_is_no_number_in_base_60():
    from flowrl.config import load_config

    assert load_config("smoke/robot_rollout_toy", ["seeds=5:20"])["seeds"] == "5:20"
