"""Where configs and assets lie, in a clone or in an installed wheel, and how a config is read."""

from __future__ import annotations

import difflib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowrl.config.locate import locate_data
from flowrl.config.overrides import apply_overrides, without_base_60
from flowrl.config.user_code import locate_files
from flowrl.errors import ConfigError, close_match

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["asset_path", "bundled_configs", "config_path", "load_config"]


def asset_path(name: str) -> Path:
    """Find a bundled asset.

    Args:
        name: Path below ``assets/``, with or without that prefix: ``"models/digits_sd3"`` or ``"assets/models/digits_sd3"``.

    Raises:
        ConfigError: If there is no such file or folder.
    """
    folder = _bundled("assets")
    path = folder / name.removeprefix("assets/")
    if path.exists():
        return path
    nearest = next(parent for parent in path.parents if parent.is_dir())
    names = [entry.relative_to(folder).as_posix() for entry in nearest.iterdir()] if nearest.is_relative_to(folder) else []
    raise ConfigError(f"no bundled asset {name!r}{close_match(name.removeprefix('assets/'), names)}")


def bundled_configs() -> list[str]:
    """Return the names of the bundled configs, sorted, such as ``"image/digits_g2rpo"``; all folders, without ``.yaml``.

    Those in ``configs/accelerate`` are accelerate's own and not among them.
    """
    folder = _bundled("configs")
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("accelerate/"))


def config_path(name: str | Path) -> Path:
    """Find a config: an existing file, else a bundled one by name.

    Args:
        name: A path, or a bundled name such as ``"image/digits_g2rpo"``; ``configs/`` before it and ``.yaml`` after it may be there.

    Raises:
        ConfigError: If it is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if bundled in bundled_configs():
        return _bundled("configs") / f"{bundled}.yaml"
    raise ConfigError(f"no config file {str(name)!r}, nor a bundled config of that name{_close(bundled)}")


def _close(name: str) -> str:
    """The bundled config that was meant, else all of them, one a line: there are many."""
    names = bundled_configs()
    if difflib.get_close_matches(name, names, n=1):
        return close_match(name, names)
    return "; the bundled ones are\n" + "\n".join(f"  {each}" for each in names)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config, apply overrides, resolve ``${...}``.

    Args:
        path: What `config_path` takes.
        overrides: ``key=value`` each: ``sampler.dynamics.noise_level=0.5``, ``reward.rewards.0.target=rewards.Brightness``. A key must be
            in the config or be a field of the component that it sets; the value is YAML.

    Returns:
        Plain dicts, lists and scalars, as `instantiate` takes them and as a run folder's ``config.yaml`` stores them. A target that names
        a file of the user's (``target: my_reward.py:MyReward``) has its full path; a relative one lies in the config's folder, or else in
        the working directory. Prompt files and the model's folder: the other way round, see `flowrl.config.locate`.

    Raises:
        ConfigError: If the file is missing, not UTF-8, not YAML or not a mapping, or if an override names what does not exist.
    """
    found = config_path(path)
    config = cast("dict[str, Any]", OmegaConf.to_container(_read(found), resolve=False))
    apply_overrides(config, overrides, found.parent)
    try:
        resolved = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        place = f"config.{error.full_key}" if error.full_key else str(found)
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}") from error
    locate_files(resolved, found.parent)
    locate_data(resolved, found.parent)
    return resolved


def _read(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(io.StringIO(without_base_60(path.read_text(encoding="utf-8"))))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except (yaml.YAMLError, OSError) as error:  # OmegaConf raises OSError for a file that holds one scalar
        raise ConfigError(f"{path} is not a YAML mapping: {error}") from error
    if not isinstance(loaded, DictConfig) or not loaded:
        raise ConfigError(f"{path} must hold a mapping of keys to values, it holds {'a list' if loaded else 'nothing'}")
    return loaded


def _bundled(name: str) -> Path:
    """Return the folder of that name: inside the installed package, else at the root of the clone."""
    package = Path(__file__).parent.parent
    clone = package.parent
    if (package / name).is_dir():
        return package / name
    if (clone / "pyproject.toml").is_file() and (clone / name).is_dir():  # not whatever lies in site-packages under that name
        return clone / name
    raise ConfigError(f"{name}/ was found neither in {package} nor in a clone around it; install again: pip install flowrl-torch")
