"""Compiles the CUDA kernels for the CPU and loads them as `torch.ops.stan_emulated`; see emulation.h."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "stan" / "ops" / "csrc"
TORCH = Path(torch.__file__).parent
FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas",
    "-DSTAN_EMULATE", "-DTORCH_TARGET_VERSION=0x020a000000000000",
    f"-I{HERE}", f"-I{SOURCES}", "-isystem", str(TORCH / "include"),
]  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler, or None where there is none."""
    return next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)


@functools.cache
def emulated_ops() -> Any:
    """The ops on CPU tensors, built when the sources or torch have changed since the last time."""
    torch.ops.load_library(str(_library()))
    return torch.ops.stan_emulated


def _library() -> Path:
    files = sorted(
        [*HERE.glob("*.h"), *SOURCES.glob("*.h"), *SOURCES.glob("schema.cpp"), *SOURCES.glob("cuda/*")]
    )
    text = repr((torch.__version__, compiler(), FLAGS)).encode() + b"".join(
        path.read_bytes() for path in files
    )
    digest = hashlib.sha256(text).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"stan-cuda-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"emulated-{digest}.so"
    with open(folder / "lock", "w") as lock:  # test processes side by side build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            for old in folder.glob("emulated-*.so"):
                old.unlink()
            _build(library)
    return library


def _build(library: Path) -> None:
    name = compiler()
    assert name is not None
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        schema = work / "schema.cpp"
        schema.write_text((SOURCES / "schema.cpp").read_text().replace("(stan, ", "(stan_emulated, "))
        sources = [schema, *sorted(SOURCES.glob("cuda/*.cu"))]
        objects = [work / f"{source.stem}.o" for source in sources]
        commands = [
            [name, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects)
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_run, commands))
        linked = library.with_suffix(".new")
        _run([name, "-shared", *map(str, objects), "-o", str(linked), f"-L{TORCH / 'lib'}", "-ltorch_cpu"])
        os.replace(linked, library)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")
