"""The table of metrics: what follows from a record, and that the documentation does."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from stan.evaluation.measure import figures
from stan.metrics import METRICS, Metric, add, strred
from stan.metrics.table import in_files
from tests.conftest import ROOT


def test_order_of_the_files_never_changes() -> None:
    """Programs read results.csv by its columns."""
    names = [metric.name for metric in in_files() if metric.name != "temporal_gain"]
    assert names == [
        "psnr", "psnr_rounded", "ssim", "strred", "strred_unit", "flicker", "psnr_noisy", "ssim_noisy",
        "strred_noisy", "flicker_noisy", "seconds_per_frame", "memory_mib",
    ]  # fmt: skip


def test_values_are_shown_with_the_digits_that_mean_something() -> None:
    shown = {
        "psnr": (31.236, "31.24"), "ssim": (0.98764, "0.9876"), "strred": (8.987, "8.99"), "memory_mib": (12.6, "13"),
        "seconds_per_frame": (3e-6, "<0.001"), "temporal_gain": (1.2, "+1.20"), "flicker": (math.nan, "–"),
        "psnr_rounded": (math.inf, "∞"), "strred_unit": (None, ""),
    }  # fmt: skip
    assert {name: METRICS[name].show(value) for name, (value, _) in shown.items()} == {
        name: text for name, (_, text) in shown.items()
    }
    assert METRICS["strred"].show(1234.5) == "1234"


def test_better_and_best() -> None:
    assert METRICS["psnr"].best([30.0, None, math.nan, 31.0]) == 31
    assert METRICS["strred"].best([30.0, 31.0]) == 30
    assert METRICS["memory_mib"].best([30.0, 31.0]) is None
    assert METRICS["psnr"].best([math.nan]) is None


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'psnr' is registered twice"):
        add(METRICS["psnr"])


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_measuring_in_pieces_is_measuring_at_once(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    clean = torch.randint(0, 256, (frames, 3, 40, 48), generator=generator, dtype=torch.uint8)
    output = clean / 255 + 0.1 * torch.randn(clean.shape, generator=generator)
    metrics = [m for m in METRICS.values() if m.function]
    found = figures(clean, output, metrics)
    assert found.keys() >= {m.name for m in metrics}
    for metric in metrics:
        assert metric.function is not None
        values = metric.function(clean / 255, output)
        whole = metric.reduce(values) if metric.reduce else float(values.mean())
        assert found[metric.name] == pytest.approx(whole, rel=1e-12, nan_ok=True)
        assert metric.frames == (f"{metric.name}_frames" in found)
    assert found["strred_unit"] == pytest.approx(strred(clean / 255, output, 1.0), rel=1e-12, nan_ok=True)


def test_border_and_frames_that_are_too_small() -> None:
    clean = torch.full((2, 3, 20, 24), 100, dtype=torch.uint8)
    output = clean / 255
    output[..., :7, :] += 0.5
    counted = Metric(
        "n", "n", "", "", function=lambda a, b: torch.tensor([float(a.numel())] * len(a)), smallest=8
    )
    found = figures(clean, output, [METRICS["psnr"], METRICS["ssim"], counted], border=7)
    assert found["psnr"] == math.inf
    assert math.isnan(found["ssim"])  # 6 rows are left
    assert math.isnan(found["n"])


def test_documentation_is_written_from_the_table() -> None:
    before = (ROOT / "docs/evaluation.md").read_text()
    program = "import scripts.metrics_page as page; print(page.filled(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == before, "run python scripts/metrics_page.py"
    for metric in METRICS.values():
        assert f"| `{metric.name}` |" in before
