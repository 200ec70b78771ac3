"""Builds the operator's native kernels into one shared library, stan/ops/_C.abi3.so; the rest is in pyproject.toml.

The library uses LibTorch's stable ABI and no Python API: one file serves Python 3.10 and torch 2.10 and newer.
Without a compiler, or without torch's headers, the installation succeeds all the same; stan/ops/_build.json
then says why there is no library, and the pure-PyTorch reference is used.

Environment variables:

    STAN_BUILD       auto (default): the CPU kernels, and the CUDA kernels where nvcc is found
                     cpu: the CPU kernels alone; cuda: both, and an error where that fails; none: no library
    STAN_CUDA_ARCHS  compute capabilities, such as "8.0;9.0"; "all" (default): all from 7.5 on that this nvcc knows
    CXX, NVCC        the compilers
    STAN_CXXFLAGS    further flags for the C++ compiler and the linker, such as "-fsanitize=address -g -O1"
    MAX_JOBS         compilers at a time; default: the number of processors
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
SOURCES = Path("stan/ops/csrc")
TORCH_TARGET = "0x020a000000000000"  # torch 2.10: the oldest the library can be loaded into
X86 = platform.machine() in ("x86_64", "AMD64")
# The kernels are compiled once for each of these; cpu/dispatch.cpp chooses among them and asks for the same features.
CAPABILITIES = {
    "generic": [],
    **({"avx2": ["-mavx2", "-mfma", "-mf16c"]} if X86 else {}),
    **({"avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq",
                   "-mprefer-vector-width=512"]} if X86 else {}),
}  # fmt: skip


class CannotBuild(Exception):
    """Why the native kernels cannot be built here, in one line."""


def torch_folder() -> Path:
    """Folder of the torch to build against; also from an isolated build, which cannot import it."""
    spec = importlib.util.find_spec("torch")
    places = [Path(spec.origin).parent] if spec and spec.origin else []
    places += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for place in places:
        if (place / "include/torch/csrc/stable/library.h").is_file():
            return place
    raise CannotBuild("torch 2.10 or newer is not installed, so there are no headers to build against")


def cxx_compiler() -> str:
    """The C++ compiler, by CXX or by its usual names."""
    named = os.environ.get("CXX", "").split()
    for name in named[:1] or ["c++", "g++", "clang++"]:
        if path := shutil.which(name):
            return path
    raise CannotBuild(f"no C++ compiler found (looked for {named[0] if named else 'c++, g++, clang++'})")


def cuda_compiler() -> str | None:
    """nvcc, by NVCC, CUDA_HOME or CUDA_PATH, on the path, or in /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for name in [os.environ.get("NVCC"), *(home and f"{home}/bin/nvcc" for home in homes[:2]), "nvcc",
                 f"{homes[2]}/bin/nvcc"]:  # fmt: skip
        if name and (path := shutil.which(name)):
            return path
    return None


def cuda_archs(nvcc: str) -> list[str]:
    """Architectures to compile for, as nvcc writes them: 75, 80, 90, ..."""
    wanted = os.environ.get("STAN_CUDA_ARCHS", "all").strip() or "all"
    known = re.findall(r"\d+", run([nvcc, "--list-gpu-arch"]))
    known = sorted((arch for arch in known if 75 <= int(arch) <= 120), key=int)
    if wanted == "all":
        return known
    archs = [arch.replace(".", "") for arch in re.split(r"[;,\s]+", wanted)]
    for arch in archs:
        if arch not in known:
            raise CannotBuild(f"STAN_CUDA_ARCHS: {nvcc} does not know {arch!r}, only {', '.join(known)}")
    return sorted(archs, key=int)


def run(command: list[str]) -> str:
    """Output of a command; CannotBuild with its first error line where it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        sys.stderr.write(" ".join(command) + "\n" + result.stdout + result.stderr)
        errors = [
            line for line in result.stderr.splitlines() if "error" in line
        ] or result.stderr.splitlines()
        raise CannotBuild(
            f"{Path(command[0]).name} failed: {errors[0].strip() if errors else result.returncode}"
        )
    return result.stdout


class BuildNative(build_ext):
    """Compiles with the compilers themselves: the flags differ from file to file, and CUDA may be missing."""

    def build_extension(self, ext: Extension) -> None:
        """Build the library, or say in _build.json why there is none."""
        target = self.target()
        target.parent.mkdir(parents=True, exist_ok=True)
        wanted = os.environ.get("STAN_BUILD", "auto")
        if wanted not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"STAN_BUILD: expected auto, cpu, cuda or none, got {wanted!r}")
        library, without_cuda = False, ""
        try:
            if wanted == "none":
                raise CannotBuild("STAN_BUILD=none")
            try:
                self.build_library(target, cuda=wanted != "cpu")
            except CannotBuild as reason:
                if wanted != "auto":
                    raise
                without_cuda = str(reason)
                self.build_library(target, cuda=False)
            library = True
            reason_text = ""
        except CannotBuild as reason:
            if wanted in ("cpu", "cuda"):
                raise SystemExit(f"STAN_BUILD={wanted}: {reason}") from None
            reason_text = str(reason)
            target.unlink(missing_ok=True)
            self.warn(f"the native kernels are not built: {reason_text}")
        record = {"built": library, "reason": reason_text, "cuda": without_cuda}
        (target.parent / "_build.json").write_text(json.dumps(record) + "\n")

    def target(self) -> Path:
        """The library in the build folder."""
        return Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(self.extensions[0].name))

    def copy_extensions_to_source(self) -> None:
        """For an editable install: bring the library and its record beside the sources."""
        for path in (self.target(), self.target().parent / "_build.json"):
            home = ROOT / "stan/ops" / path.name
            if path.is_file():
                new = home.with_name(home.name + ".new")
                shutil.copy(path, new)
                os.replace(new, home)
            else:
                home.unlink(missing_ok=True)

    def get_output_mapping(self) -> dict[str, str]:
        """Files that an editable install finds beside the sources instead."""
        return (
            {path: str(ROOT / "stan/ops" / Path(path).name) for path in self.get_outputs()}
            if self.inplace
            else {}
        )

    def get_outputs(self) -> list[str]:
        """Files this command makes, for the record of the installation."""
        files = [self.target(), self.target().parent / "_build.json"]
        return [str(path) for path in files if path.is_file()]

    def build_library(self, target: Path, cuda: bool) -> None:
        """Compile and link."""
        torch, cxx = torch_folder(), cxx_compiler()
        extra = os.environ.get("STAN_CXXFLAGS", "").split()
        common = [
            "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            "-isystem", str(torch / "include"), f"-I{SOURCES}",
        ]  # fmt: skip
        flags = ["-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
                 "-Wall", "-Wextra", *(["-DSTAN_X86"] if X86 else []), *common, *extra]  # fmt: skip
        jobs = []
        definitions, libraries = [], []
        if cuda:
            jobs, definitions, libraries = self.cuda_jobs(common)
        for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("cpu/*.cpp")]):
            if source.name == "kernels.cpp":
                for name, isa in CAPABILITIES.items():
                    jobs.append(self.job(source, name, [cxx, *flags, *isa, f"-DSTAN_CAPABILITY={name}"]))
            else:
                jobs.append(self.job(source, "", [cxx, *flags, *definitions]))
        workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        jobs.sort(
            key=lambda job: job[0].suffix == ".cu"
        )  # C++ first: a compiler that fails shows before the long CUDA files
        with ThreadPoolExecutor(workers) as pool:
            tasks = [pool.submit(self.compile, job) for job in jobs]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        objects = [obj for _, obj, _ in jobs]
        new = target.with_name(target.name + ".new")
        run(
            [
                cxx,
                "-shared",
                *extra,
                *objects,
                "-o",
                str(new),
                f"-L{torch / 'lib'}",
                "-ltorch_cpu",
                *libraries,
            ]
        )
        os.replace(new, target)

    def cuda_jobs(self, common: list[str]) -> tuple[list, list[str], list[str]]:
        """Jobs of the CUDA sources, what schema.cpp is to know of them, and what to link with."""
        sources = sorted(SOURCES.glob("cuda/*.cu"))
        nvcc = cuda_compiler()
        if nvcc is None:
            raise CannotBuild(
                "no nvcc found (looked in NVCC, CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda)"
            )
        if not sources:
            raise CannotBuild("there are no CUDA sources")
        archs = cuda_archs(nvcc)
        version = re.search(r"release ([\d.]+)", run([nvcc, "--version"]))
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # for GPUs yet to come
        flags = ["-O3", "--expt-relaxed-constexpr", "--extended-lambda", "-lineinfo", "-Xcompiler",
                 "-fPIC,-fvisibility=hidden", "-cudart", "static", *common, *code]  # fmt: skip
        jobs = [self.job(source, "", [nvcc, *flags]) for source in sources]
        text = [
            f'-DSTAN_CUDA_ARCHS="{" ".join(archs)}"',
            f'-DSTAN_CUDA_VERSION="{version[1] if version else ""}"',
        ]
        # nvcc may be a wrapper script somewhere else; its dry run names the toolkit's folder
        dry = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True
        )
        top = re.search(r"TOP=(\S+)", dry.stderr)
        home = Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent
        folders = [
            f"-L{home / name}"
            for name in ("lib64", "lib", "targets/x86_64-linux/lib")
            if (home / name).is_dir()
        ]
        return jobs, text, [*folders, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]

    def job(self, source: Path, variant: str, command: list[str]) -> tuple[Path, str, list[str]]:
        """Source, object file, and the command without the two."""
        folder = Path(self.build_temp) / source.parent
        folder.mkdir(parents=True, exist_ok=True)
        name = source.name + (f".{variant}" if variant else "") + ".o"
        return source, str((folder / name).resolve()), command

    def compile(self, job: tuple[Path, str, list[str]]) -> None:
        """Compile one file, unless its object is newer than all sources and came from the same command."""
        source, obj, command = job
        full = [*command, "-c", str(source), "-o", obj]
        stamp, line = Path(obj + ".command"), " ".join(full)
        newest = max(path.stat().st_mtime for path in SOURCES.rglob("*") if path.is_file())
        fresh = Path(obj).is_file() and Path(obj).stat().st_mtime > newest
        if not self.force and fresh and stamp.is_file() and stamp.read_text() == line:
            return
        run(full)
        stamp.write_text(line)


class BuildPackage(build_py):
    """Puts configurations and trained weights into the installed package, as stan/configs and stan/checkpoints; a
    clone has them beside it."""

    def run(self) -> None:
        """Copy them after the package's own files."""
        super().run()
        if not self.editable_mode:
            for folder in ("configs", "checkpoints"):
                target = Path(self.build_lib) / "stan" / folder
                shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.ckpt"), dirs_exist_ok=True)


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel cp310-abi3: it depends on the platform, not on the Python."""

    def finalize_options(self) -> None:
        """Set the tag before it is used."""
        self.py_limited_api = "cp310"
        super().finalize_options()


os.chdir(ROOT)
setup(
    ext_modules=[Extension("stan.ops._C", sources=[], py_limited_api=True)],
    cmdclass={"build_py": BuildPackage, "build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
)
