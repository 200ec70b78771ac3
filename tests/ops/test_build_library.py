"""The build: what it needs, what it leaves behind without it, and what the library depends on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from stan.ops import backend, library

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(bool(library.WHY_NOT), reason="the native kernels are not built")


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the extension's build into a folder of its own."""
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "-b",
        str(folder / "lib"),
        "-t",
        str(folder / "temp"),
    ]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "lib/stan/ops/_build.json").read_text())


def test_without_a_compiler_the_build_succeeds_and_says_why(tmp_path: Path) -> None:
    result = build(tmp_path, CXX="no-such-compiler", STAN_BUILD="auto")
    assert result.returncode == 0, result.stderr
    assert record(tmp_path)["reason"] == "no C++ compiler found (looked for no-such-compiler)"
    assert not list(tmp_path.rglob("*.so"))


def test_a_library_that_was_asked_for_must_be_built(tmp_path: Path) -> None:
    result = build(tmp_path, CXX="no-such-compiler", STAN_BUILD="cpu")
    assert result.returncode != 0
    assert "STAN_BUILD=cpu: no C++ compiler found" in result.stderr


def test_none_builds_nothing_and_a_wrong_word_is_refused(tmp_path: Path) -> None:
    assert build(tmp_path, STAN_BUILD="none").returncode == 0
    assert record(tmp_path) == {"built": False, "reason": "STAN_BUILD=none", "cuda": ""}
    assert "expected auto, cpu, cuda or none, got 'gpu'" in build(tmp_path, STAN_BUILD="gpu").stderr


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    compiler = tmp_path / "bad-compiler"
    compiler.write_text("#!/bin/sh\necho 'fatal error: out of ideas' >&2\nexit 1\n")
    compiler.chmod(0o755)
    no_cuda = "0.1"  # an architecture that no nvcc knows: nothing of CUDA is compiled
    result = build(tmp_path, CXX=str(compiler), STAN_BUILD="auto", STAN_CUDA_ARCHS=no_cuda)
    assert result.returncode == 0, result.stderr
    assert record(tmp_path)["reason"] == "bad-compiler failed: fatal error: out of ideas"


@built
def test_the_library_asks_for_the_stable_interface_alone() -> None:
    undefined = subprocess.run(
        ["nm", "-D", "-u", str(library.LIBRARY)], check=True, capture_output=True, text=True
    ).stdout
    symbols = re.findall(r"^\s+[Uw] (\S+)", undefined, re.MULTILINE)
    assert any(name.startswith("aoti_torch_") for name in symbols)
    torch_or_python = [name for name in symbols if re.match(r"_ZNK?(2at|3c10|5torch)|_?Py", name)]
    assert torch_or_python == []
    needed = subprocess.run(
        ["readelf", "-d", str(library.LIBRARY)], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(r"\(NEEDED\).*\[(\S+?)\]", needed)
    assert {name for name in names if "torch" in name or "cuda" in name} == {"libtorch_cpu.so"}


def test_a_missing_library_leaves_the_reference_and_a_reason(tmp_path: Path) -> None:
    package = tmp_path / "stan"
    shutil.copytree(
        ROOT / "stan", package, ignore=shutil.ignore_patterns("*.so", "csrc", "_build.json", "__pycache__")
    )
    (package / "ops/_build.json").write_text(
        '{"built": false, "reason": "no C++ compiler found", "cuda": ""}'
    )
    script = """
import torch
from stan import ops
from stan.ops import backend
video = torch.zeros(1, 1, 2, 4, 4)
print(ops.shifted_nls(video, video, window=3, temporal_window=0, topk=2).scores.sum().item())
print(backend.report())
try:
    ops.shifted_nls(video, video, window=3, temporal_window=0, topk=2, backend="native")
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("not built: no C++ compiler found") == 2


def test_the_report_has_a_line_for_each_device() -> None:
    report = backend.report()
    assert all(isinstance(text, str) and text for text in report.values())
    assert report["operator"].startswith("native" if not library.WHY_NOT else "reference")


@built
@pytest.mark.parametrize("wanted", ["reference", "native", "cuda"])
def test_the_environment_chooses_for_a_whole_program(wanted: str) -> None:
    script = (
        "from stan.ops import backend; print(backend.report()['operator in use'])\n"
        "print(backend.resolve(None).__name__, backend.resolve('native').__name__)"
    )
    environment = os.environ | {"STAN_BACKEND": wanted}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert f"STAN_BACKEND={wanted}" in done.stdout
    if wanted == "cuda":
        assert "expected one of ('reference', 'native') or None, got 'cuda'" in done.stderr
    else:
        assert done.stdout.split()[-2:] == [f"stan.ops.{wanted}", "stan.ops.native"]


@pytest.mark.slow
@built
def test_a_wheel_serves_a_fresh_environment_without_a_compiler(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"STAN_BUILD": "cpu"}, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    python = fresh / "bin/python"
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", str(wheel)]
    subprocess.run(pip, env=os.environ | {"PATH": str(fresh / "bin")}, check=True)
    (site,) = fresh.glob("lib/python3.*/site-packages")
    (site / "torch-from-here.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    script = (
        "import stan.config, stan.ops.library as l; print(l.LIBRARY); assert not l.WHY_NOT, l.WHY_NOT\n"
        "print(stan.config.load(stan.config.builtin_configs() / 'train/davis_tiny.yaml').model.name)"
    )
    result = subprocess.run(
        [str(python), "-c", script], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert str(site) in result.stdout
    assert "stan_tiny" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects")
def test_code_for_one_processor_is_shared_with_no_other(tmp_path: Path) -> None:
    # A weak function compiled for AVX-512 could be the copy the linker keeps for all.
    result = build(tmp_path, STAN_BUILD="cpu")
    assert result.returncode == 0, result.stderr
    objects = list((tmp_path / "temp").rglob("kernels.cpp.*.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
        assert re.findall(r"^\S* *W .*", symbols, re.MULTILINE) == [], path.name
