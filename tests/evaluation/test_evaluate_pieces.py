"""What ``evaluate`` keeps of earlier work: used again where it is the same, made anew where it is not or is damaged."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import pytest

from stan.errors import DataError
from stan.evaluation import evaluate
from stan.ops import backend
from tests.evaluation.conftest import Make
from tests.evaluation.runs import MANY, count_computed, quiet, rows


@pytest.mark.parametrize(
    "words",
    [
        ["noise.kind=gaussian_rounded"],
        ["noise.kind=poisson_gaussian", "noise.settings={shot: 0.3}"],
        ["noise.kind=correlated"],
        ["evaluation.seed=5"],
        ["evaluation.border=6"],
        ["evaluation.max_frames=3"],
        ["data.downscale=2"],
    ],
)
def test_settings_are_used_and_named(make_config: Make, words: list[str]) -> None:
    common = ["checkpoint=noisy", "evaluation.sequences=[a]"]
    (plain,) = evaluate(make_config(*common), console=quiet()).sequences
    results = evaluate(make_config(*common, *words), console=quiet())
    (row,) = results.sequences
    assert row["psnr"] != plain["psnr"]
    assert len(results.settings["departures"]) == 2  # the sequence picked by hand, and this
    assert results.title == "quick (modified)"


def test_other_settings_do_not_reuse_pieces(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = count_computed(monkeypatch)
    common = ["checkpoint=noisy", "evaluation.sequences=[a]"]
    evaluate(make_config(*common), console=quiet())
    evaluate(make_config(*common), console=quiet())
    assert computed == [("noisy", "a", 30)]
    evaluate(make_config(*common, "evaluation.border=4"), console=quiet())
    evaluate(make_config(*common, "evaluation.sigmas=[30,31]"), console=quiet())
    assert computed == [("noisy", "a", 30), ("noisy", "a", 30), ("noisy", "a", 31)]


def test_another_operator_backend_computes_anew_and_agrees(
    make_config: Make, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """STAN_BACKEND=reference is how a reader who distrusts the kernels checks a figure."""
    computed = count_computed(monkeypatch)
    config = make_config(f"checkpoint={checkpoints['known']}", "evaluation.sequences=[a]")
    first = evaluate(config, console=quiet())
    monkeypatch.setattr(backend, "DEFAULT", "reference")
    second = evaluate(config, console=quiet())
    used = backend.NAMES[0] if backend.why_not_native() else "native"
    assert (first.methods[0]["operator"], second.methods[0]["operator"]) == (used, "reference")
    assert computed.count(("known", "a", 30)) == (1 if used == "reference" else 2)
    assert second.means[0]["psnr"] == pytest.approx(first.means[0]["psnr"], abs=1e-3)


def test_a_changed_checkpoint_or_frame_is_evaluated_afresh(
    make_config: Make, checkpoints: dict[str, Path], davis_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(davis_root, data)
    model = tmp_path / "model.ckpt"
    computed = count_computed(monkeypatch)
    words = [f"checkpoint={model}", f"data.root={data}", "evaluation.sequences=[a]"]
    for source in ("known", "blind"):
        shutil.copy(checkpoints[source], model)
        evaluate(make_config(*words), console=quiet())
    assert computed == [("noisy", "a", 30), ("model", "a", 30), ("model", "a", 30)]
    frame = data / "JPEGImages/480p/a/00000.jpg"
    cv2.imwrite(str(frame), cv2.imread(str(frame))[:, ::-1])
    evaluate(make_config(*words), console=quiet())
    assert computed[3:] == [("noisy", "a", 30), ("model", "a", 30)]


def test_a_changed_frame_in_the_middle_is_evaluated_afresh_a_copied_or_unused_one_is_not(
    make_config: Make, davis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    shutil.copytree(davis_root, data)
    frames = data / "JPEGImages/480p/a"
    computed = count_computed(monkeypatch)
    words = ["checkpoint=noisy", "evaluation.sequences=[a]", "evaluation.max_frames=4"]
    (before,) = evaluate(make_config(*words, f"data.root={data}"), console=quiet()).sequences
    shutil.copy(frames / "00000.jpg", frames / "00005.jpg")  # beyond the cap
    shutil.copytree(data, copy)  # other times, and another place
    evaluate(make_config(*words, f"data.root={copy}"), console=quiet())
    assert len(computed) == 1
    picture = cv2.imread(str(frames / "00001.jpg"))
    status = (frames / "00001.jpg").stat()
    cv2.imwrite(str(frames / "00001.jpg"), picture[:, ::-1])
    os.utime(frames / "00001.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    (after,) = evaluate(make_config(*words, f"data.root={data}"), console=quiet()).sequences
    assert len(computed) == 2
    assert after["clean_sha256"] != before["clean_sha256"]


def test_damaged_pieces_are_made_again(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("checkpoint=noisy", MANY)
    evaluate(config, console=quiet())
    before = rows(tmp_path / "out")
    pieces = sorted((tmp_path / "out/parts").rglob("*.json"))
    pieces[0].write_text(pieces[0].read_text()[:100])
    pieces[1].with_suffix(".npz").unlink()
    pieces[2].write_text("{}")
    pieces[3].write_text(pieces[3].read_text().replace('"psnr": ', '"psnr": 1'))
    pieces[4].with_suffix(".npz").write_bytes(b"no pictures")
    pieces[5].write_bytes(b"\xff\x00")
    computed = count_computed(monkeypatch)
    evaluate(config, console=quiet())
    assert len(computed) == 6
    assert rows(tmp_path / "out") == before


def test_damaged_tiles_are_decided_again(
    make_config: Make, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(f"checkpoint={checkpoints['known']}", "evaluation.sequences=[a]")
    evaluate(config, console=quiet())
    (decision,) = (tmp_path / "out/parts").glob("tiles-*.json")
    whole = decision.read_text()
    decision.write_text("{}")
    evaluate(config, console=quiet())
    assert decision.read_text() == whole


@pytest.mark.parametrize("ending", [".json", ".npz", ".lock"])
def test_a_folder_in_place_of_a_piece_is_named(make_config: Make, tmp_path: Path, ending: str) -> None:
    config = make_config("checkpoint=noisy", "evaluation.sequences=[a]")
    evaluate(config, console=quiet())
    (piece,) = (tmp_path / "out/parts").rglob("*.json")
    for path in (piece, piece.with_suffix(".npz")):
        path.unlink()
    piece.with_suffix(ending).mkdir()
    with pytest.raises(DataError, match=rf"{piece.stem}\{ending} is a folder"):
        evaluate(config, console=quiet())
    piece.with_suffix(ending).rmdir()
    evaluate(config, console=quiet())


def test_a_folder_in_place_of_a_result_or_of_decoded_frames_is_named(
    make_config: Make, tmp_path: Path
) -> None:
    words = [
        "checkpoint=noisy",
        "evaluation.sequences=[a]",
        "data.downscale=2",
        f"data.cache={tmp_path}/cache",
    ]
    evaluate(make_config(*words), console=quiet())
    (frames,) = (tmp_path / "cache").glob("*.npy")
    frames.unlink()
    frames.mkdir()
    with pytest.raises(DataError, match=r"\.npy is a folder"):
        evaluate(make_config(*words), console=quiet())
    frames.rmdir()
    report = tmp_path / "out/report.md"
    report.unlink()
    report.mkdir()
    with pytest.raises(DataError, match=r"report\.md is a folder"):
        evaluate(make_config(*words), console=quiet())
