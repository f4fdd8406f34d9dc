"""The wheel carries what commands need, and imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "lsb": {"vlmae", "launch", "lightning", "hydra", "omegaconf", "transformers"},
    "vlmae": {"launch"},
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    with zipfile.ZipFile(next(folder.glob("vlmae-*.whl"))) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_packages_and_the_whole_config_tree(wheel: set[str]) -> None:
    for path in REPOSITORY.glob("conf/**/*.yaml"):
        assert f"vlmae/{path.relative_to(REPOSITORY)}" in wheel
    assert {"vlmae/model.py", "lsb/store/store.py", "launch/round.py"} <= wheel
    assert {f"lsb/search/kernel/{name}" for name in ("scan.cpp", "encode.h", "simd.h")} <= wheel
    scripts = {f"launch/templates/{name}.sh.j2" for name in ("base", "array", "ranks")}
    assert scripts <= wheel
    assert not [name for name in wheel if name.startswith(("tests/", "conf/", "runs/"))]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_imports_go_down_only(package: str) -> None:
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found = {name.split(".")[0] for name in names} & FORBIDDEN[package]
            assert not found, f"{path.relative_to(REPOSITORY)} imports {sorted(found)}"


def test_every_module_is_under_six_hundred_lines() -> None:
    for package in ("lsb", "vlmae", "launch"):
        sources = (REPOSITORY / package).rglob("*.*")
        for path in (path for path in sources if path.suffix in (".py", ".cpp", ".h")):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 600, path
