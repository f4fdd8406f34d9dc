"""Where the Hydra config tree is, and how a command starts and fails.

A command is a module with `@command("<root file>") def main(config): ...`. A mistake of the user
(an unknown group, a value out of range, a folder that is absent) ends it with one line on stderr
and a non-zero exit code; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

_FULL = (
    "free some (python -m launch.clean --report says what no run needs), then give the same "
    "command again: what is whole is kept"
)
_CLOSED = "make that folder writable, or set runs=<folder> to one that is"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
}
"""What to type where the system refuses a file."""

T = TypeVar("T")
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


def task_overrides() -> list[str]:
    """The command line's overrides, of a command that is running."""
    return [str(override) for override in HydraConfig.get().overrides.task]


def as_dict(config: DictConfig) -> dict[str, object]:
    """A config node as plain, fully resolved containers."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(container, dict):
        raise ValueError(f"expected a config mapping, got {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def build(group: str, kind: type[T], values: Mapping[str, Any]) -> T:
    """A settings dataclass from a config group, every value checked against its annotation.

    Args:
        group: name of the group, for messages.
        kind: the dataclass.
        values: of the group.

    Raises:
        ValueError: names the key, what is wrong with it and the value.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{group} has no key {unknown[0]!r}, only {', '.join(known)}")
    made: T = checked(group, kind, dict(values))
    return made


def checked(key: str, kind: Any, value: Any) -> Any:
    """One config value, checked against a type.

    Raises:
        ValueError: names the key, what is wrong with it and the value.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        refused = first.get("ctx", {}).get("error")
        if isinstance(refused, ValueError):  # by the dataclass itself: its message says it all
            raise refused from None
        place = ".".join([key, *map(str, first["loc"])])
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r}") from None


def command(config_name: str, refused: int = 1) -> Callable[[Command], Callable[[], None]]:
    """Turn `main(config)` into a Hydra command with one-line errors.

    Args:
        config_name: root file in `conf/`, without ".yaml".
        refused: exit code where `main` refuses a value; what cannot be composed is always 2.
    """

    def decorate(main: Command) -> Callable[[], None]:
        def guarded(config: DictConfig) -> None:
            try:
                main(config)
            except (
                ValueError,
                OSError,
                HydraException,
                OmegaConfBaseException,
            ) as error:
                # Hydra wraps what a constructor refused; the refusal is what the user needs.
                cause = error.__cause__
                _fail(cause if isinstance(cause, ValueError) else error, code=refused)
            except KeyboardInterrupt:
                line = "stopped: the same command goes on from here; jobs of a cluster run on"
                print(line, file=sys.stderr)
                raise SystemExit(130) from None

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
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if remedy is not None:
        line = f"{line}: {remedy}"
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(code)
