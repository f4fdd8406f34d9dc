"""A private Label Studio server; `from label_studio_server import label_studio` in a conftest.

The pinned release in `.label-studio/venv` (`make label-studio`), with its data below a temporary
folder, on a free port of 127.0.0.1. It reads media from pytest's own folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".label-studio"
HOW = "make label-studio (its own virtual environment, 1 GB)"
START_SECONDS = 400  # 45 on an idle machine: it makes its tables first


@dataclass(frozen=True)
class LabelStudioServer:
    """Where it is, and the key of its owner's account."""

    url: str
    key: str
    documents: Path


def missing() -> str | None:
    """Why there is no server to start, None if there is."""
    ready, wanted = FOLDER / ".ready", ROOT / "requirements" / "label-studio.txt"
    if not (FOLDER / "venv" / "bin" / "label-studio").is_file() or not ready.is_file():
        return f"no Label Studio is installed: {HOW}"
    if ready.read_text() != wanted.read_text():
        return f"another Label Studio is installed than {wanted.name} pins: {HOW}"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """A server of the session; skipped where none is installed."""
    if (problem := missing()) is not None:
        pytest.skip(problem)
    home = Path(tempfile.mkdtemp(prefix="vlmae-label-studio-"))
    documents = tmp_path_factory.getbasetemp().resolve()
    key, port = secrets.token_hex(20), free_port()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PORT")
    } | {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(documents),
        "COLLECT_ANALYTICS": "False",
    }  # fmt: skip
    with open(home / "server.log", "wb") as log:
        process = subprocess.Popen(
            [FOLDER / "venv" / "bin" / "label-studio", "start", "-b", "--data-dir", home / "data",
             "--internal-host", "127.0.0.1", "--host", f"http://127.0.0.1:{port}",
             "--port", str(port), "--username", "owner@example.com",
             "--password", secrets.token_hex(12), "--user-token", key,
             "--enable-legacy-api-token"],
            cwd=home, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, home / "server.log")
        yield LabelStudioServer(url, key, documents)
    finally:
        # Django's server has a child; both are in the group that was made for them.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"Label Studio ended: {log.read_text()[-2000:]}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"Label Studio did not start in {START_SECONDS} s: {log.read_text()}")
