"""Where the Hydra config tree is, and how a command starts and fails.

A command is a module with `@command("<root file>") def main(config): ...`. A mistake of the user
(an unknown group, a value out of range, a folder that is absent) ends it with one line on stderr
and a non-zero exit code; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Command = Callable[[DictConfig], None]


def conf_dir() -> str:
    """The absolute path of `conf/`: of the checkout where there is one, else the copy in the wheel.

    Raises:
        ValueError: neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "prepare.yaml").is_file():
            return str(folder)
    raise ValueError(f"no conf folder beside or inside {package}: reinstall the package vlmae")


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose one root file with overrides, as the command line would."""
    if GlobalHydra.instance().is_initialized():  # inside a running command
        return compose(config_name, overrides=overrides)
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(config_name, overrides=overrides)


def as_dict(config: DictConfig) -> dict[str, object]:
    """A config node as plain, fully resolved containers."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(container, dict):
        raise ValueError(f"expected a config mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def command(config_name: str) -> Callable[[Command], Callable[[], None]]:
    """Turn `main(config)` into a Hydra command with one-line errors.

    Args:
        config_name: root file in `conf/`, without ".yaml".
    """

    def decorate(main: Command) -> Callable[[], None]:
        def guarded(config: DictConfig) -> None:
            try:
                main(config)
            except (ValueError, FileNotFoundError, OmegaConfBaseException) as error:
                _fail(error, code=1)

        def run() -> None:
            overrides = sys.argv[1:]
            if not any(argument.startswith("-") for argument in overrides):
                try:
                    compose_config(config_name, overrides)
                except (HydraException, OmegaConfBaseException) as error:
                    _fail(error, code=2)
            hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(
                guarded
            )()

        run.__doc__ = main.__doc__
        return run

    return decorate


def _fail(error: Exception, code: int) -> None:
    """Print an error as one line and exit."""
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)
