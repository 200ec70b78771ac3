"""The work behind gpu_check.sh: build, tests, memory checker, benchmarks, each with its share of the time.

Every step writes its whole output to a log; only the table at the end is printed. Steps that time leaves no
room for are named as not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENOUGH_MEMORY_CHECKS = (
    "tiled_search_equals_reference and roomy or search_backward_in_half or test_refine and dtype0 "
    "or test_gather_of_patches or wild_features or test_search_flow and dtype0"
)
BENCH_NEEDS = ("rich",)
TRAINING_NEEDS = (
    "pytorch_lightning",
    "omegaconf",
    "rich",
    "safetensors",
    "cv2",
    "av",
    "torchvision",
    "skimage",
    "scipy",
    "PIL",
    "filelock",
    "platformdirs",
)
ROWS = ("480p", "480p smooth", "480p bf16", "480p dot", "goal")


@dataclass
class Step:
    """One line of the table: a name, "ok", "FAILED", "not run" or "absent", a remark, and seconds."""

    name: str
    result: str
    remark: str = ""
    seconds: float = 0.0


class Run:
    """The steps of one call, their logs and the time that is left."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out = out
        self.end = time.monotonic() + 60 * minutes
        self.steps: list[Step] = []
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds left, less a little for the table."""
        return self.end - time.monotonic() - 5

    def command(
        self,
        name: str,
        words: list[str],
        at_most: float,
        remark: Callable[[str], str] = lambda _: "",
        **env: str,
    ) -> bool:
        """Run a command as a step of at most `at_most` seconds; `remark` makes a remark of its output."""
        limit = min(at_most, self.left())
        if limit < 5:
            self.steps.append(Step(name, "not run", "no time left"))
            return False
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        log = self.out / f"{name.replace(' ', '_')}.log"
        with open(log, "w") as sink:
            try:
                code = subprocess.run(
                    words,
                    cwd=ROOT,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    env=os.environ | env,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        text = log.read_text(errors="replace")
        said = remark(text) if code is not None else f"stopped after {limit:.0f} s"
        self.steps.append(Step(name, "ok" if code == 0 else "FAILED", said, time.monotonic() - started))
        if code != 0:
            print("".join(text.splitlines(keepends=True)[-25:]), flush=True)
        return code == 0


def main() -> int:
    """Run all steps; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, help="folder for logs and figures (default: $OUT or runs/gpu_check)"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: 9.5)")
    parser.add_argument(
        "--rival", help="a Python file with another search to time beside ours; see docs/benchmarks.md"
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="the same steps on the CPU, with emulated kernels"
    )
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not args.rehearse:
        print(f"gpu_check: torch {torch.__version__} finds no CUDA device here; nothing was checked")
        return 2
    out = args.out or Path(os.environ["OUT"] if os.environ.get("OUT") else ROOT / "runs" / "gpu_check")
    run = Run(out, args.minutes)
    bench, training = out / "bench.json", out / "training.json"
    if args.rehearse:
        _rehearsal(run, bench, training)
    else:
        _checks(run, bench, training, args.rival)
    print(_headline(torch, args.rehearse))
    print(_table(run.steps))
    if bench.exists():
        print(_figures(json.loads(bench.read_text())))
    if training.exists():
        print(_training_figures(json.loads(training.read_text())))
    print(f"logs and figures: {out}")
    return 0 if all(step.result in ("ok", "absent") for step in run.steps) else 1


def _checks(run: Run, bench: Path, training: Path, rival: str | None) -> None:
    import torch

    major, minor = torch.cuda.get_device_capability()
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if not run.command("build", build, 240, STAN_BUILD="cuda", STAN_CUDA_ARCHS=f"{major}.{minor}"):
        return
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "--confcutdir=tests/ops",
        "-p",
        "no:cacheprovider",
    ]
    kernels, device = "tests/ops/test_cuda_kernels.py", "tests/ops/test_cuda_device.py"
    run.command("kernels", [*pytest, kernels], 120, _counts)
    run.command("graphs compile etc", [*pytest, device], 120, _counts)
    rest = [*pytest, "tests/ops", f"--ignore={kernels}", f"--ignore={device}"]
    run.command("operator tests", rest, 120, _counts)
    _benchmark(
        run,
        bench,
        ["--device", "cuda", "--seconds", "1", *(word for row in ROWS for word in ("--case", row))],
        rival,
    )
    models = ["--models", "stan_tiny,stan_small,unet_small,stan"]
    _training(run, training, ["trainer.accelerator=gpu", *models])
    _memory_checks(run, [*pytest, kernels, "-k", ENOUGH_MEMORY_CHECKS])


def _memory_checks(run: Run, tests: list[str]) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None:
            run.steps.append(Step(tool, "absent", "no compute-sanitizer here"))
            continue
        words = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", *tests]
        # Without torch's cache every tensor is a block of its own, whose bounds the checker knows.
        run.command(tool, words, 150, _counts, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def _rehearsal(run: Run, bench: Path, training: Path) -> None:
    kernels = "tests/ops/test_cuda_kernels.py"
    pytest = [sys.executable, "-m", "pytest", "-q", "--confcutdir=tests/ops", "-p", "no:cacheprovider"]
    run.command(
        "kernels", [*pytest, kernels, "-k", "emulated and (test_search_flow or test_refine)"], 120, _counts
    )
    _benchmark(
        run,
        bench,
        ["--size", "24x24", "--methods", "reference,grid_sample", "--seconds", "0.1", "--memory", "2"],
        None,
    )
    small = ["trainer.accelerator=cpu", "data.crop=24", "data.frames=3", "data.batch_size=1"]
    _training(run, training, [*small, "--models", "stan_tiny,unet_tiny", "--steps", "2", "--profiled", "1"])


def _benchmark(run: Run, bench: Path, words: list[str], rival: str | None) -> None:
    methods = (
        ["--methods", f"native,reference,candidates,grid_sample,unfold,database,{rival}"] if rival else []
    )
    if _absent(run, "benchmark", BENCH_NEEDS):
        return
    files = ["--json", str(bench), "--markdown", str(bench.with_suffix(".md"))]
    run.command("benchmark", [*_bench_command("op"), *words, *methods, *files], 180)


def _training(run: Run, report: Path, words: list[str]) -> None:
    """How fast networks train, where what training needs beyond torch is there."""
    if not _absent(run, "training", TRAINING_NEEDS):
        run.command("training", [*_bench_command("train"), *words, "--json", str(report)], 150)


def _absent(run: Run, step: str, needs: tuple[str, ...]) -> bool:
    """Whether packages that a step needs are missing; if so, the table names them."""
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        run.steps.append(Step(step, "absent", f"no {', '.join(missing)} here"))
    return bool(missing)


def _bench_command(what: str) -> list[str]:
    """`stan bench`, without loading what every other command needs."""
    code = (
        "import argparse, sys; from stan.cli import bench; parser = argparse.ArgumentParser(); "
        "bench.add_arguments(parser); sys.exit(bench.run(parser.parse_args()))"
    )
    return [sys.executable, "-c", code, what]


def _counts(text: str) -> str:
    """What pytest says last: passed, failed, skipped."""
    lines = [
        line.strip("= ")
        for line in text.splitlines()
        if " passed" in line or " failed" in line or " error" in line
    ]
    return lines[-1] if lines else ""


def _headline(torch: Any, rehearse: bool) -> str:
    device = "rehearsal on the CPU: no figure here is a GPU's" if rehearse else torch.cuda.get_device_name()
    return (
        f"\n{device}; torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}"
    )


def _table(steps: list[Step]) -> str:
    return "\n".join(f"{s.name:<20} {s.result:<8} {s.seconds:6.0f} s  {s.remark}" for s in steps)


def _figures(report: dict[str, Any]) -> str:
    """Each row of the benchmark in a line: ours, its fraction of the ceiling, the others' ratios."""
    lines = [f"{'milliseconds':<20} {'pass':<17} {'ours':>9} {'ceiling':>8}  times slower"]
    for row in report["rows"]:
        for which in ("forward", "forward+backward"):
            found = [m for m in row["measurements"] if m["which"] == which]
            ours, others = found[0], found[1:]
            if ours["milliseconds"] is None:
                lines.append(f"{row['case']['name']:<20} {which:<17} {ours['problem']}")
                continue
            rest = ", ".join(
                f"{m['method']} {m['slower']:.1f}" if m["slower"] else f"{m['method']} {m['problem']}"
                for m in others
            )
            lines.append(
                f"{row['case']['name']:<20} {which:<17} {ours['milliseconds']:9.3f} "
                f"{ours['ceiling_fraction']:8.0%}  {rest}"
            )
    return "\n".join(lines)


def _training_figures(report: dict[str, Any]) -> str:
    """Each network in a line: speed, waiting, memory, and what its step is spent on."""
    lines = [
        f"{'training':<12} {'steps/s':>8} {'samples/s':>9} {'waits':>6} {'busy':>6} {'MiB':>7}  parts of a step"
    ]
    for row in report["rows"]:
        parts = sorted(row["parts"].items(), key=lambda item: -item[1]["share"])
        largest = ", ".join(f"{name} {found['share']:.0%}" for name, found in parts[:5] if found["share"] > 0)
        peak = f"{row['peak_bytes'] / 2**20:7.0f}" if row["peak_bytes"] else "      -"
        lines.append(
            f"{row['model']:<12} {row['steps_per_second']:8.3f} {row['samples_per_second']:9.3f} "
            f"{row['data_wait']:6.1%} {row['device_busy']:6.0%} {peak}  {largest}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
