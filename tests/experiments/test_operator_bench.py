"""The operator's benchmark: its competitors find our matches, and it measures what it says."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stan.cli import bench_operator
from stan.errors import StanError
from stan.experiments.machine import describe_machine
from stan.experiments.operator_bench.bench import Measurement, Report, Row, Settings, run_bench
from stan.experiments.operator_bench.cases import GOAL, Case, table
from stan.experiments.operator_bench.competitors import COMPETITORS, Found
from stan.experiments.operator_bench.memory import OUT_OF_MEMORY, Prober
from stan.experiments.operator_bench.methods import METHODS, OURS, PASSES, agreement, call
from stan.experiments.operator_bench.report import against_leanest, disagreements, markdown, print_tables
from stan.experiments.operator_bench.timing import Ceilings
from tests.forked import Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = replace(GOAL, name="small", height=18, width=21)
MIB = 2**20


@pytest.mark.parametrize("name", list(COMPETITORS))
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, heads=2, metric="dot", patch=3, window=5),
        replace(SMALL, temporal_window=2, topk=20, flow="smooth", channels=3),
        replace(SMALL, dtype="bfloat16", window=3),
    ],
    ids=lambda case: case.settings(),
)
def test_competitors_find_our_matches(name: str, case: Case) -> None:
    found, ours = (Found(*call(method, case, "cpu")("forward")) for method in (name, "reference"))
    error, same = agreement(found, ours)
    assert error < 1e-3
    assert same > 0.999


@pytest.mark.parametrize("name", list(COMPETITORS))
def test_competitors_have_our_gradients(name: str) -> None:
    found, ours = (call(method, SMALL, "cpu")("forward+backward") for method in (name, "reference"))
    for tensor, expected in zip(found, ours):  # a near-tie may swap: compare the bulk
        error = (tensor - expected).abs() > 1e-2 * (1 + expected.abs())
        assert error.float().mean() < 1e-3


def test_agreement_notices_other_matches() -> None:
    ours = Found(*call("reference", SMALL, "cpu")("forward"))
    error, same = agreement(Found(ours.scores, ours.offsets + 1, ours.frames), ours)
    assert error == 0
    assert same == 0
    assert agreement(Found(ours.scores - 5, ours.offsets, ours.frames), ours)[0] > 0.05


def rival(folder: Path, body: str) -> str:
    """A method of one's own, as a file."""
    path = folder / "rival.py"
    path.write_text(
        "import time, torch\nfrom stan.experiments.operator_bench.methods import METHODS\n"
        f"def search(query, key, flow, case):\n    if case.height > 17:\n{body}\n"
        "    return METHODS['grid_sample'](query, key, flow, case)\n"
    )
    return str(path)


def test_memory_is_measured_and_bounded(tmp_path: Path) -> None:
    case = replace(SMALL, channels=2, window=3, topk=2)
    prober = Prober(limit=400 * MIB, seconds=20, threads=1)
    try:
        plain = prober.probe("grid_sample", case, "forward")
        assert plain.extra is not None
        greedy = prober.probe(rival(tmp_path, f"        torch.ones({64 * MIB // 4})"), case, "forward")
        assert greedy.extra is not None
        assert 60 * MIB < greedy.extra < 64 * MIB + plain.extra + 8 * MIB
    finally:
        prober.close()
    prober = Prober(limit=400 * MIB, seconds=20, threads=1)
    try:
        wanted = prober.probe(rival(tmp_path, f"        torch.ones({4096 * MIB // 4})"), case, "forward")
        assert wanted.problem == OUT_OF_MEMORY
        assert wanted.extra is None
        assert prober.probe("grid_sample", case, "forward").problem is None  # and it goes on
    finally:
        prober.close()


@pytest.mark.slow
def test_a_slow_method_is_named(tmp_path: Path) -> None:
    case = replace(SMALL, channels=2, window=3, topk=2)
    name = rival(tmp_path, "        time.sleep(1.5)")
    report = run_bench([case], Settings(methods=("grid_sample", name), seconds=0.05, limit=1.0, memory=2**31))
    found = report.rows[0].of(name, "forward")
    assert found is not None
    assert found.problem == "over 1 s"
    assert found.milliseconds is not None
    assert found.milliseconds > 1500


def test_a_method_with_other_matches_is_denounced(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        "from stan.experiments.operator_bench.methods import METHODS\n"
        "def search(query, key, flow, case):\n"
        "    return METHODS['grid_sample'](query, key, -flow, case)\n"
    )
    settings = Settings(methods=("grid_sample", "unfold", str(path)), seconds=0.01, memory=2**31)
    report = run_bench([SMALL], settings)
    lines = disagreements(report)
    assert len(lines) == 1
    assert "wrong.py" in lines[0]
    assert "| small | 18x21 |" in markdown(report)


def test_every_method_and_figure_fits_into_80_columns() -> None:
    methods = (*OURS, *COMPETITORS)
    row = Row(replace(GOAL, heads=12, patch=3, metric="dot", dtype="bfloat16", flow="smooth"))
    for which in PASSES:
        for n, name in enumerate(methods):
            row.measurements.append(
                Measurement(name, which, 12345.6 * (n + 1), 3, 2**33 * (n + 1), 0.13, n + 1.0, 0.0, 1.0)
            )
    report = Report(describe_machine("cpu"), Ceilings(1e11, 1e10), Settings(methods=methods), [row])
    text = StringIO()
    print_tables(report, Console(file=text, width=80))
    assert "…" not in text.getvalue()
    assert max(len(line) for line in text.getvalue().splitlines()) <= 80
    for name in methods:
        assert len(re.findall(rf"\s{name}\s", text.getvalue())) >= 4
    assert against_leanest(report)[0].startswith(
        "goal: the leanest other way takes forward time x3 (candidates)"
    )


def test_the_measuring_process_is_of_the_same_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that holds another copy of it."""
    (tmp_path / "stan").mkdir()
    (tmp_path / "stan" / "__init__.py").write_text("raise ImportError('another copy')\n")
    monkeypatch.chdir(tmp_path)
    prober = Prober(limit=400 * MIB, seconds=20, threads=1)
    try:
        probe = prober.probe("grid_sample", replace(SMALL, channels=2, window=3, topk=2), "forward")
    finally:
        prober.close()
    assert probe.problem is None


def test_work_and_bytes_of_the_operator_page() -> None:
    case = next(case for case in table("cpu") if case.name == "480p")
    assert case.queries == 5 * 480 * 854
    # The page's floor of 0.24 ms at an H200's 67 TFLOP/s counts the products without the interpolation.
    assert case.forward_flops() == pytest.approx(0.24e-3 * 67e12, rel=0.5)
    assert case.volume_bytes() == case.queries * 243 * 28


def test_stan_bench_writes_json(run_stan: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    words = ["--size", "18x21", "--seconds", "0.01", "--methods", "reference,unfold", "--json", path]
    done = run_stan("bench", "op", *words, "--markdown", tmp_path / "bench.md", "--threads", 1)
    assert "times the first method's" in done.stdout
    report = json.loads(path.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert {m["which"] for m in report["rows"][0]["measurements"]} == {"forward", "forward+backward"}
    for measured in report["rows"][0]["measurements"]:
        assert measured["milliseconds"] > 0
        assert measured["extra_bytes"] is not None
        assert 0 < measured["ceiling_fraction"] < 1
    assert "18x21" in (tmp_path / "bench.md").read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "faster"], "there is no method 'faster'"),
        (["--size", "12"], "--size 12: expected HxW"),
        (["--case", "nowhere"], "--case nowhere: no such row"),
        (["--json", "/no/such/folder/x.json"], "/no/such/folder does not exist"),
        (["--threads", "0"], "--threads 0"),
    ],
)
def test_bad_arguments_are_named(words: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    bench_operator.add_arguments(parser)
    with pytest.raises(StanError, match=message):
        bench_operator.run(parser.parse_args(words))


def test_names_are_unique() -> None:
    names = [case.name for case in table("cuda")]
    assert len(names) == len(set(names))
    assert set(COMPETITORS) < set(METHODS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run scripts/gpu_check.sh itself")
def test_gpu_check_says_in_one_line_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu_check.sh")],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stdout.strip().splitlines()) == 1
    assert "no CUDA device" in done.stdout
