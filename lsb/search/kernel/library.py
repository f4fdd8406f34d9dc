"""Builds `scan.cpp` for this processor and loads it.

The library is compiled once by whatever C++ compiler is there and kept in `$VLMAE_CACHE` (default
`~/.cache/vlmae`) under a name that hashes source, flags and compiler, so that a shared home
directory serves machines of different kinds. Nothing here decides results: without a compiler, or
on another processor, `lsb.search.backends` takes a scan that gives the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

SOURCES = tuple(Path(__file__).with_name(name) for name in ("scan.cpp", "encode.h", "simd.h"))
FLAGS = (
    *("-O3", "-std=c++20", "-shared", "-fPIC", "-pthread", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
INSTRUCTION_SETS = {  # best first: name -> (what the processor must have, compiler flags)
    "avx512": (
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "fma", "f16c"),
        (
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
            *("-mavx2", "-mfma", "-mf16c"),
        ),
    ),
    "avx2": (("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c")),
}

log = logging.getLogger(__name__)


class KernelError(RuntimeError):
    """The kernel cannot be built or run here; the message says why."""


class Projection(ctypes.Structure):
    """See scan.cpp."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dimension", "padded", "prefix", "augmented")),
        *((name, ctypes.c_float) for name in ("step", "weight_scale", "prefix_step")),
        ("weights", ctypes.c_void_p),
    )


class Queries(ctypes.Structure):
    """See scan.cpp."""

    _fields_ = (
        ("count", ctypes.c_int32),
        ("panels", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("vectors", "packed", "error")),
        ("scale", ctypes.c_float),
        ("codes", ctypes.c_void_p),
        ("code_error", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("code_scale", "norm", "float_error")),
    )


class Rows(ctypes.Structure):
    """See scan.cpp."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("ids", "excluded", "vectors")),
        ("half", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("codes", "code_error", "prefix", "prefix_error")),
    )


class Library:
    """The loaded kernel of one instruction set, with its layout constants."""

    def __init__(self, path: Path, name: str):
        self.name = name
        self.calls: Any = ctypes.CDLL(str(path))
        pointer, int32 = ctypes.c_void_p, ctypes.c_int32
        signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "scan_new": (pointer, (int32, int32, ctypes.c_double, pointer)),
            "scan_free": (None, (pointer,)),
            "scan_bound": (None, (pointer, pointer)),
            "scan_raise": (None, (pointer, pointer)),
            "scan_encode": (None, (*(pointer,) * 6, int32)),
            "scan_add": (None, (*(pointer,) * 4, int32, int32, pointer)),
            "scan_finish": (ctypes.c_int64, (pointer, pointer)),
            "scan_take": (None, (pointer,) * 4),
        }
        for name_, (result, arguments) in signatures.items():
            call = getattr(self.calls, name_)
            call.restype, call.argtypes = result, arguments
        self.lanes = int(self.calls.scan_lanes())
        self.step = int(self.calls.scan_step())
        self.offset = int(self.calls.scan_offset())
        self.panel = int(self.calls.scan_panel())


@cache
def compiled() -> Library | None:
    """The best kernel that runs here, built if need be; None, and a warning, where none does."""
    names = [
        name for name, (needed, _) in INSTRUCTION_SETS.items() if processor_flags() >= set(needed)
    ]
    if not names:
        return None
    try:
        return load(names[0])
    except KernelError as error:
        log.warning("%s; searches use int_mm, which gives the same hits and is slower", error)
        return None


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@cache
def load(name: str) -> Library:
    """Build, if need be, and load the kernel for an instruction set.

    Raises:
        KernelError: the processor lacks it, there is no compiler, or it fails; the message says
            which and what to do.
    """
    needed, flags = INSTRUCTION_SETS[name]
    absent = sorted(set(needed) - processor_flags())
    if absent:
        raise KernelError(
            f"this processor has no {', '.join(absent)}, which the {name} kernel needs: use "
            "search.backend=auto"
        )
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise KernelError(
            f"no C++ compiler {compiler[0]!r} found: apt-get install g++, or set CXX; "
            "search.backend=auto does without"
        )
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    described = "\0".join((version, *FLAGS, *flags)).encode() + b"".join(
        source.read_bytes() for source in SOURCES
    )
    digest = hashlib.blake2b(described, digest_size=8).hexdigest()
    folder = cache_folder()
    path = folder / f"scan-{name}-{digest}.so"
    if not path.is_file():
        _build([*compiler, *FLAGS, *flags], path)
    return Library(path, name)


def cache_folder() -> Path:
    """Where built kernels are kept; a temporary folder where the usual one cannot be written."""
    given = os.environ.get("VLMAE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(given).expanduser() if given else Path(base).expanduser() / "vlmae"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # a home that cannot be written is no error
    folder = Path(tempfile.gettempdir()) / f"vlmae-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _build(command: list[str], path: Path) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    done = subprocess.run(
        [*command, "-o", str(work), str(SOURCES[0])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        work.unlink(missing_ok=True)
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        said = (lines or done.stderr.splitlines() or ["it said nothing"])[0]
        raise KernelError(
            f"{command[0]} could not build {SOURCES[0].name} ({said}): a compiler of C++20 is "
            "needed (GCC 11, Clang 14 or newer); search.backend=auto does without"
        )
    os.replace(work, path)
