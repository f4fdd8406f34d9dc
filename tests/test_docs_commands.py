"""Commands of the pages compose: a key that is renamed in conf/ fails here, not at a stranger's.

Every `python -m ...` of a page whose keys are complete, in blocks and in running text. Placeholders
(`<hash>`) stand for any value, `...` for keys that are left out: such commands are passed over.
What is left is composed as the command would, launchers are built, and scripts rendered where the
page says `--dry-run`. Presets that the page shows as `conf/...yaml` are there.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from string import Template
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.compare import listed_choices
from launch.jobs.flags import FLAGS
from launch.jobs.job import RANKS
from launch.jobs.launcher_config import TRAIN, SlurmConfig, launcher_config
from launch.stages.launched_run import is_dry_run, print_script, print_scripts
from launch.sweeping.space import read_space
from vlmae.config import as_dict, compose_config, conf_dir

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
NAMED = {
    "docs/slurm.md": {"launch.plan", "launch.cache", "launch.train", "launch.round"},
    "docs/topology.md": {"launch.plan"},
    "docs/own_media.md": {"launch.round", "launch.compare", "vlmae.train", "vlmae.predict"},
    "README.md": {"launch.round", "launch.compare"},
}
"""Modules whose commands a page has to show."""
ROOT_FILES = {
    "launch.cache": "launch_cache",
    "launch.train": "launch_train",
    "launch.sweep": "launch_sweep",
}
"""Modules whose file in conf/ has not their own name."""
BLOCK = re.compile(r"(?:^ {4}[^\n]*\n)+|^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]*python -m [^`]*)`")
VARIABLE = re.compile(r'^ {4}([A-Z]+)="(.*)"$', re.MULTILINE)
PRESET = re.compile(r"`conf/(\w+)/(\w+)\.yaml`[^`]*(?:`[^`]*`[^`]*)*?```yaml\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"python -m ([a-z_]+\.[a-z_]+)((?: +[^\n|;&]*)?)")


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Module and arguments of every complete command of a page, variables filled in."""
    variables = dict(VARIABLE.findall(page))
    found = []
    for text in [*BLOCK.findall(page), *INLINE.findall(page)]:
        joined = re.sub(r"\\\n\s*", " ", text).replace("\\$", "$$")
        filled = Template(joined).safe_substitute(variables)
        for module, rest in COMMAND.findall(re.sub(r"<[^>\n]*>", "x", filled)):
            given = re.sub(r"  +#.*", "", rest).rstrip()
            for quote in "\"'":
                if given.count(quote) % 2:  # the end of a command in quotes
                    given = given[: given.rindex(quote)]
            arguments = shlex.split(given.partition(" --cfg ")[0])
            if not any("..." in argument for argument in arguments):
                found.append((module, arguments))
    return found


def compose(root: str, overrides: list[str], presets: Path) -> Any:
    """As the command line would, with the presets of the page beside conf/."""
    return compose_config(root, [*overrides, f"hydra.searchpath=[file://{presets}]"])


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_compose(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / name).read_text("utf-8")
    for group, option, text in PRESET.findall(page):
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{option}.yaml").write_text(text)
    checked = set()
    for module, arguments in commands(page):
        said = f"{name}: python -m {module} {' '.join(arguments)}"
        if any(argument.startswith("share=") for argument in arguments):
            arguments = [re.sub(r"\$\w+", "0", argument) for argument in arguments]
        assert importlib.util.find_spec(module), f"{said}: there is no such module"
        root = ROOT_FILES.get(module, module.rpartition(".")[2])
        if module.startswith("lsb.") or not (Path(conf_dir()) / f"{root}.yaml").is_file():
            continue  # no command of Hydra's
        overrides = [FLAGS.get(argument, argument) for argument in arguments]
        try:
            if module == "launch.sweep":
                overrides = read_space(overrides).first
            if module == "launch.compare":
                _, overrides = listed_choices(overrides)
            config = compose(root, overrides, tmp_path)
            values = as_dict(config)
            launcher = launcher_config(values["launcher"]) if "launcher" in values else None
            if launcher is not None and launcher.dry_run and module == "launch.round":
                assert is_dry_run(config)
                print_scripts(config)
            elif isinstance(launcher, SlurmConfig):
                print_script(launcher, TRAIN, tmp_path, kind=RANKS, name=TRAIN, tasks=1)
        except Exception as error:
            raise AssertionError(f"{said}\n{error}: mend the page, or the key") from error
        checked.add(module)
    assert NAMED.get(name, set()) <= checked
    if name in ("docs/slurm.md", "docs/topology.md"):
        assert f"#SBATCH --job-name={TRAIN}-<hash>" in capsys.readouterr().out


def test_the_page_of_slurm_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/slurm.md").read_text("utf-8")
    ((group, option, text),) = PRESET.findall(page)
    (tmp_path / group).mkdir()
    (tmp_path / group / f"{option}.yaml").write_text(text)
    overrides = next(given for module, given in commands(page) if module == "launch.train")
    values = as_dict(compose("launch_train", overrides[:-1], tmp_path))
    launcher = launcher_config(OmegaConf.to_container(OmegaConf.create(values["launcher"])))
    assert isinstance(launcher, SlurmConfig)
    print_script(launcher, TRAIN, tmp_path, kind=RANKS, name=TRAIN, tasks=1)
    printed = capsys.readouterr().out
    shown = re.findall(r"^ {4}(#SBATCH .*)$", page, re.MULTILINE)
    assert len(shown) > 5
    for line in shown:
        assert line in printed, f"docs/slurm.md shows {line!r}, which is not printed: mend the page"


def test_a_renamed_key_is_found() -> None:
    lines = ['    MODEL="vl=clip"', "", "    python -m launch.plan $MODEL plan.gpu_gb=80 \\"]
    page = "\n".join([*lines, "        a=<b c>", ""])
    ((module, arguments),) = commands(page)
    assert (module, arguments) == ("launch.plan", ["vl=clip", "plan.gpu_gb=80", "a=x"])
    with pytest.raises(Exception, match=r"gpu_gb"):
        compose_config("plan", arguments[:2])
    assert commands("`python -m launch.plan ...` and `python -m launch.plan`") == [
        ("launch.plan", [])
    ]
