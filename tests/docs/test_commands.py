"""Every command of the documentation: run where that is quick, with stand-ins for its files; else parsed.

A new command in a page is run or parsed without a change here, unless it needs a file that `workplace` does not have.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

import stan.cli
import stan.models
from stan.config import load
from stan.models import Trained
from tests.conftest import ROOT, moving_picture

from .pages import FENCE, PAGES, PROGRAMS, Command, commands

ALL = list({command.line: command for page in PAGES for command in commands(page)}.values())
STAN = [command for command in ALL if command.words[0] == "stan"]
CONFIGURED = ("train", "finetune", "evaluate", "config")

NOT_HERE = {  # words of commands that are parsed only, and why
    "--download": "a download",
    "trainer.accelerator=gpu": "GPUs",
    "trainer.devices=4": "GPUs",
    "cuda:1": "GPUs",
    "--stream": "pipes: tests/cli/test_denoise.py runs them",
    "demo": "tests/cli/test_demo.py runs it",
    "op": "half a minute: tests/experiments runs it",
    "native,reference": "half a minute: tests/experiments runs it",
    "mine.yaml": "tests/extending runs it",
    "noise.kind=stripes": "tests/extending runs it",
    "runs/framewise/last.ckpt": "tests/extending runs it",
}
TRAIN = [
    "data.root=data/DAVIS", "trainer.max_steps=2", "optimizer.warmup_steps=0", "data.crop=16", "data.frames=3",
    "data.batch_size=1", "data.workers=0", "validation.every=2", "validation.frames=2", "validation.crop=32",
    "trainer.accelerator=cpu", "resume=never", "logger=none",
]  # fmt: skip
NETWORK = ["model.flow=zero", "model.settings.channels=[4,4]", "model.settings.depths=[1,1]"]
COMPARED = [
    "root=data/DAVIS", "steps=2", "finetune_steps=2", "seeds=[0]", "test_frames=3", "test_crop=32",
    "words=[model.name=unet_tiny,data.crop=16,data.frames=3,data.batch_size=1,data.workers=0,trainer.accelerator=cpu,"
    '"model.settings={channels: [4, 4], temporal_window: 1, window: 5, search_matches: 9, matches: 9}"]',
]  # fmt: skip
QUICK = {  # words laid over a command to make it quick
    "train": [*TRAIN, *NETWORK],
    "finetune": TRAIN,
    "evaluate": ["evaluation.sigmas=[30]", "evaluation.protocol=quick", "evaluation.max_frames=3",
                 "evaluation.split=null", "trainer.accelerator=cpu"],
    "denoise": ["--overwrite"],
    "bench train": [*TRAIN, *NETWORK, "--steps", "1", "--profiled", "1"],
    **{f"experiment {name}": COMPARED for name in ("attention", "offsets", "ablation", "resolution", "noise")},
    "experiment": ["root=data/DAVIS", "split=val", "frames=3", "crop=24", "sequences=1", "windows=[1,3]",
                   "sources=[zero]", "searched=[noisy,tested]", "sigmas=[15]", "strides=[1]", "patches=[3]"],
}  # fmt: skip
SYNTHETIC = ["--size", "64x48", "--frames", "3", "--train", "1", "--val", "1"]
CHECKPOINTS = ("model.ckpt", "FILE", "a.ckpt", "b.ckpt", "runs/demo/train/last.ckpt", "runs/demo/finetune/last.ckpt",
               "runs/davis_tiny/best.ckpt", "runs/davis_small/last.ckpt", "runs/deblur/last.ckpt",
               "runs/finetune_pairs/best.ckpt")  # fmt: skip


def runs_here(command: Command) -> bool:
    return not any(word in command.words for word in NOT_HERE) and "davis --root" not in command.line


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, davis_root: Path) -> Path:
    """A folder with small stand-ins for all files that the pages name."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(davis_root, place / "data/DAVIS")
    for name in ("data/mine/one", "my_clips/one", "frames", "shot", "pairs/clean/one", "pairs/noisy/one"):
        shutil.copytree(davis_root / "JPEGImages/480p/d", place / name)
    for number in range(3):
        write_png(place / f"shot/take2_{number}.png", moving_picture(number, 1, 48, 64)[0])
    for name in ("in.mp4", "noisy.mp4"):
        write_video(place / name, moving_picture(0, 7, 64, 64))
    write_video(place / "whole.mkv", moving_picture(0, 5, 64, 64))
    (place / "broken.mp4").write_bytes((place / "whole.mkv").read_bytes()[:-200])

    model = stan.models.build("stan_tiny", channels=[4, 4], depths=[1, 1], flow="zero")
    model.trained = Trained("gaussian", (30.0, 30.0), 1)
    for name in CHECKPOINTS:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        stan.models.save(model, place / "checkpoint.ckpt")
        os.replace(place / "checkpoint.ckpt", place / name)
    blind = stan.models.build("unet_tiny", blind=True, flow="zero")
    blind.trained = Trained("gaussian", (5.0, 55.0), 1)
    stan.models.save(blind, place / "blind.ckpt")
    return place


def write_png(path: Path, picture: np.ndarray) -> None:
    assert cv2.imwrite(str(path), picture[..., ::-1])


def write_video(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, width=frames.shape[2], height=frames.shape[1])
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


@pytest.mark.parametrize("command", STAN, ids=str)
def test_commands_of_stan_parse(command: Command) -> None:
    """By the real parser; what is configured also by the real loader, every key and value checked."""
    args = stan.cli.build_parser().parse_args(command.words[1:])
    if args.command in CONFIGURED and command.page != "extending.md":
        load(ROOT / args.config, args.overrides)


def quick(words: list[str]) -> list[str]:
    """The words with those of `QUICK`: settings behind the command's own, options at the end."""
    more = QUICK.get(" ".join(words[:2])) or QUICK.get(words[0], []) if len(words) > 1 else []
    own = next((n for n, word in enumerate(words) if word.startswith("--")), len(words))
    first = next((n for n, word in enumerate(more) if word.startswith("--")), len(more))
    return [*words[:own], *more[:first], *words[own:], *more[first:]]


@pytest.mark.parametrize("command", [c for c in STAN if runs_here(c)], ids=str)
def test_commands_of_stan_run(command: Command, here: Path) -> None:
    words = quick(list(command.words[1:]))
    if words[:2] == ["prepare", "synthetic"]:
        words = [*words, *SYNTHETIC]
        shutil.rmtree("runs/demo/data", ignore_errors=True)
    elif "data.root=runs/demo/data" in words and not Path("runs/demo/data").exists():
        assert stan.cli.main(["prepare", "synthetic", "--root", "runs/demo/data", *SYNTHETIC]) == 0
    if "--blind" in words:
        words[words.index("--checkpoint") + 1] = "blind.ckpt"
    if "finetune.keep_optimizer=true" in words:
        assert stan.cli.main(["train", "configs/train/davis_tiny.yaml", *QUICK["train"]]) == 0
    if words[0] == "export":
        small = ["--size", "32x24", "--frames", "1"]  # tests/models/test_graph.py has more
        words += ["--overwrite", *(small if "--size" in words else [])]
    if "data.kind=folder" in words:
        words += ["data.root=data/mine"]
    if any(word.startswith("data.noisy=") for word in words):
        words += ["data.root=pairs/clean", "data.noisy=pairs/noisy"]
    words = [word.replace("davis_small", "davis_tiny") if words[0] == "bench" else word for word in words]
    assert stan.cli.main(words) == 0


def test_most_commands_run() -> None:
    """The table of those that do not is no way out."""
    assert sum(runs_here(command) for command in STAN) > 0.7 * len(STAN)


@pytest.mark.parametrize("word", NOT_HERE)
def test_exceptions_are_in_use(word: str) -> None:
    assert any(word in command.words for command in STAN)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    for command in ALL:
        if command.words[0] == "make":
            targets = [word for word in command.words[1:] if "=" not in word]
            assert targets, command
            assert all(target in phony.split() for target in targets), command


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.words[0] in ("torchrun", "sbatch") or c.words[0].endswith(".sh")], ids=str
)
def test_scripts_exist_and_take_these_words(command: Command) -> None:
    (script,) = [ROOT / word for word in command.words if re.fullmatch(r"scripts/\w+\.(py|sh)", word)]
    assert script.is_file()
    words = list(command.words[command.words.index(str(script.relative_to(ROOT))) + 1 :])
    if script.suffix == ".py":
        args = stan.cli.build_parser().parse_args([script.stem, *words])
        load(ROOT / args.config, args.overrides)
    elif "train" in script.stem:
        inside = re.findall(r"scripts/train\.py (\S+)", script.read_text())
        for config in inside:
            load(ROOT / config, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_hold_known_programs(page: Path) -> None:
    """So that no command is overlooked: a block said to be shell has a known program in every line."""
    for block in FENCE.finditer(page.read_text()):
        if block["kind"] in ("bash", "sh", "console"):
            text = re.sub(r"\\\n", " ", block["text"])
            for line in filter(None, (line.strip() for line in text.splitlines())):
                first = re.split(r"\s+", re.sub(r"^([A-Z_]+=\S+\s+)+", "", line))[0]
                known = first in PROGRAMS or first.startswith(("#", "scripts/")) or re.match(r"[A-Z]+=", line)
                assert known, f"{page.name}: {line}"


def test_a_wrong_command_would_be_found() -> None:
    parser = stan.cli.build_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["denoise", "in.mp4", "out.mp4", "--chekpoint", "model.ckpt"])
    with pytest.raises(stan.errors.StanError, match="sgma"):
        load(ROOT / "configs/train/demo.yaml", ["noise.sgma=3"])


def video() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def exported() -> dict[str, object]:
    words = ["export", "model.ckpt", "stan_tiny.pt2", "--size", "32x24", "--frames", "1", "--overwrite"]
    assert stan.cli.main(words) == 0
    return {"noisy": video()[None, :1, :, :24]}


PYTHON: dict[str, Callable[[], dict[str, object]]] = {  # what the Python of a page is given
    "README.md": lambda: {"noisy": video()},
    "quickstart.md": lambda: {"noisy": video()},
    "api.md": dict,
    "two_pass.md": dict,
    "denoise.md": dict,
    "data.md": dict,
    "export.md": exported,
    "tasks.md": lambda: {"small": video()},
    "inference.md": lambda: {"noisy": video(), "frames": iter(video())},
}  # operator.md: tests/ops/test_docs.py; extending.md: tests/extending


@pytest.mark.filterwarnings("ignore::stan.inference.SigmaRangeWarning")
@pytest.mark.parametrize("page", PYTHON)
def test_python_runs_and_prints_what_it_says(page: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    code = next(block["text"] for block in FENCE.finditer(path.read_text()) if block["kind"] == "python")
    for name in ("clean.mp4", "clean.mkv"):
        (here / name).unlink(missing_ok=True)
    scope = PYTHON[page]()
    exec(code.replace("crop=256", "crop=32"), scope)  # the stand-in's frames are small
    if told := re.findall(r"^print\(.*#\s*([\d.]+)", code, re.M):
        assert capsys.readouterr().out.split() == told
    if "clean" in scope and "noisy" in scope:
        assert scope["clean"].shape == scope["noisy"].shape
