"""Imports what is slow to import, and forks whatever a client asks for.

Run by `python server.py <folder> <name> <room>`, where the last is only long: forked processes show
their own arguments in its place. It ends when its standard input is closed. It runs no thread
and computes nothing, so that a fork is as good as a new process.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import COLD, namespaces, read_by_imports

PRELOADED = (
    "torch",
    "torch.distributed.run",
    "torch.utils.data",
    "lightning.pytorch",
    "torchmetrics.functional.classification",
    "deepspeed",
    "transformers",
    "torchaudio.transforms",
    "scipy.signal",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "sqlalchemy.orm",
    "hydra",
    "pydantic",
    "rich.table",
    "faiss",
    "av",
    "PIL.Image",
    "filelock",
    "safetensors.torch",
    "fsspec",
    "psutil",
)
FORKED_WELL = {"jemalloc_bg_thd"}
"""Threads that a forked process starts anew: pyarrow's allocator does."""
FORKED = "forked"
"""Folder with a file a client, named by its process id, that holds that of the forked process."""
ARGUMENTS = (45, 46)
"""Fields of /proc/self/stat behind the name: where the arguments begin and end, see proc(5)."""


def serve(folder: Path, name: str) -> dict[str, Any] | None:
    """Fork for clients until standard input ends.

    Returns:
        In a forked process, what it is asked for; None in the server, at the end.
    """
    listener = socket.socket(socket.AF_UNIX)
    hidden = folder / f"{name}.starting"
    listener.bind(str(hidden))
    listener.listen(64)
    hidden.rename(folder / f"{name}.socket")
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin.fileno(), selectors.EVENT_READ)
    workers: dict[int, _Worker] = {}  # by each of its descriptors
    while True:
        for key, _ in waiting.select():
            if key.fd == sys.stdin.fileno():
                for worker in workers.values():
                    _kill(worker.pid)
                return None
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = _read(connection)
                if request is None:
                    connection.close()
                    continue
                client = _peer(connection)
                pid = os.fork()
                if pid == 0:
                    for held in (
                        listener,
                        connection,
                        *(one.connection for one in workers.values()),
                    ):
                        held.close()
                    for descriptor in {one.ended for one in workers.values()}:
                        os.close(descriptor)
                    waiting.close()
                    _write_whole(folder / FORKED / str(client), str(os.getpid()))
                    return {**request, "client": client}
                for descriptor in request["descriptors"]:
                    os.close(descriptor)
                worker = _Worker(pid, os.pidfd_open(pid), connection)
                for descriptor in worker.descriptors:
                    workers[descriptor] = worker
                    waiting.register(descriptor, selectors.EVENT_READ, worker)
                _tell(connection, pid)
                continue
            worker = key.data
            if workers.get(key.fd) is not worker:  # its other descriptor came first in this turn
                continue
            if key.fd != worker.ended:  # the client was killed
                _kill(worker.pid)
            _, status = os.waitpid(worker.pid, 0)
            (folder / FORKED / str(_peer(worker.connection))).unlink(missing_ok=True)
            _tell(worker.connection, status)
            for descriptor in worker.descriptors:
                del workers[descriptor]
                waiting.unregister(descriptor)
            os.close(worker.ended)
            worker.connection.close()


@dataclass(frozen=True)
class _Worker:
    """A forked process: its id, what is readable when it has ended, and whom to tell."""

    pid: int
    ended: int
    connection: socket.socket

    @property
    def descriptors(self) -> tuple[int, int]:
        return self.ended, self.connection.fileno()


def _write_whole(file: Path, text: str) -> None:
    """Write a small file that nobody sees half of."""
    hidden = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    hidden.write_text(text)
    hidden.replace(file)


def _peer(connection: socket.socket) -> int:
    """Process id of a client."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # the group is there once it has a session of its own
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _tell(connection: socket.socket, number: int) -> None:
    try:
        connection.sendall(number.to_bytes(8, "little"))
    except OSError:
        return  # the client was killed, and its end has been or will be seen


def _read(connection: socket.socket) -> dict[str, Any] | None:
    head, descriptors, _, _ = socket.recv_fds(connection, 8, 253)
    if len(head) < 8:
        return None
    size, data = int.from_bytes(head, "little"), b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return None
        data += piece
    return {**json.loads(data), "descriptors": list(descriptors)}


def become(request: dict[str, Any]) -> None:
    """Take over a client's session, files, folder, environment, limits and cores."""
    os.setsid()
    first = 1000
    moved = [_moved(descriptor, first) for descriptor in request["descriptors"]]
    for target, descriptor in zip(request["files"], moved, strict=True):
        os.dup2(descriptor, target, inheritable=True)
        os.close(descriptor)
    for name, limits in request["limits"].items():
        number = getattr(resource, name)
        if resource.getrlimit(number) != tuple(limits):
            resource.setrlimit(number, tuple(limits))
    os.sched_setaffinity(0, request["cores"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    sys.modules["numpy"].random.seed()  # type: ignore[attr-defined]
    tempfile.tempdir = None
    client = int(request["client"])
    asked, own = os.getppid, os.getpid()  # what it forks has it for a parent
    os.getppid = lambda: _parent_of(client) if os.getpid() == own else asked()
    _show_as([request["executable"], *request["arguments"]])
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
    rank_zero = sys.modules["lightning.fabric.utilities.rank_zero"]
    rank_zero.rank_zero_only.rank = int(rank or 0)  # type: ignore[attr-defined]


def _parent_of(pid: int) -> int:
    """Parent of a process; 1, as of an orphan, where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return 1
    return int(stat.rsplit(")", 1)[1].split()[1])


def _show_as(arguments: list[str]) -> None:
    """Show these arguments where processes are listed, in the place of the server's own."""
    line = b"".join(one.encode() + b"\0" for one in arguments)
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    start, end = (int(fields[number]) for number in ARGUMENTS)
    ctypes.memmove(start, line[: end - start].ljust(end - start, b"\0"), end - start)


def _moved(descriptor: int, first: int) -> int:
    import fcntl

    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, first)
    os.close(descriptor)
    return int(moved)


def run(request: dict[str, Any], clean_path: list[str]) -> int:
    """Run what a client's arguments name as the main program; returns the exit code."""
    sys.executable = sys.orig_argv[0] = request["executable"]
    sys.modules["multiprocessing.spawn"].set_executable(  # type: ignore[attr-defined]
        request["executable"]
    )
    arguments = list(request["arguments"])
    sys.orig_argv[1:] = arguments
    unbuffered = False
    while arguments[0] in ("-u", "-B"):
        unbuffered |= arguments.pop(0) == "-u"
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            line_buffering=stream.isatty(), write_through=unbuffered
        )
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    safe = bool(os.environ.get("PYTHONSAFEPATH"))
    given = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.modules["__main__"] = program = types.ModuleType("__main__")
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    try:
        if arguments[0] == "-m":
            sys.path[:] = [*([] if safe else [os.getcwd()]), *given, *clean_path]
            sys.argv[:] = ["-m", *arguments[2:]]
            runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        elif arguments[0] == "-c":
            sys.path[:] = [*([] if safe else [""]), *given, *clean_path]
            sys.argv[:] = ["-c", *arguments[2:]]
            exec(arguments[1], program.__dict__)
        else:
            script = os.path.abspath(arguments[0])
            here = [] if safe else [os.path.dirname(script)]
            sys.path[:] = [*here, *given, *clean_path]
            sys.argv[:] = arguments
            program.__file__ = arguments[0]
            with open(script, encoding="utf-8") as stream:
                code = compile(stream.read(), arguments[0], "exec")
            exec(code, program.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Import, serve; in a forked process, run and end as an interpreter does."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    clean_path = [one for one in sys.path if one != str(Path(__file__).parent)]
    for module in PRELOADED:
        importlib.import_module(module)
    importlib.import_module("multiprocessing.spawn")
    tasks = Path("/proc/self/task").iterdir()
    others = [task for task in tasks if task.name != str(os.getpid())]
    threads = {(task / "comm").read_text().strip() for task in others}
    if threads - FORKED_WELL:
        raise SystemExit(f"imports have started {threads}: a fork would not be safe")
    about = {"environment": read_by_imports(os.environ), "namespaces": namespaces()}
    _write_whole(folder / "server.json", json.dumps(about))
    gc.collect()
    gc.freeze()
    os.environ.pop(COLD, None)
    request = serve(folder, name)
    if request is not None:
        become(request)
        code = run(request, clean_path)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without taking all modules apart, one by one


if __name__ == "__main__":
    main()
