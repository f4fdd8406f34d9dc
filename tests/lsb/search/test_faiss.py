from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from lsb.search import _faiss


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name in names:
            return "1.15.1"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_faiss.metadata, "version", version)


def test_one_distribution_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "faiss-gpu")
    assert _faiss.check_distributions() == "faiss-gpu"


def test_no_distribution_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(ImportError, match=r"pip install vlmae\[cpu\]"):
        _faiss.load()


def test_both_distributions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "faiss-cpu", "faiss-gpu")
    with pytest.raises(ImportError, match=r"both installed .*pip uninstall -y faiss-cpu faiss-gpu"):
        _faiss.load()


def run(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_torch_is_imported_before_faiss() -> None:
    script = "import sys, lsb.search.exact; print(*sys.modules)"
    modules = run(script).split()
    assert modules.index("torch") < modules.index("faiss")


def test_the_rest_of_lsb_imports_neither() -> None:
    script = (
        "import sys, lsb.ledger, lsb.store, lsb.threshold, lsb.why, lsb.selection, "
        "lsb.annotate.oracle, lsb.acquisition.seeds; print(*sys.modules)"
    )
    assert not {"torch", "faiss"} & set(run(script).split())
