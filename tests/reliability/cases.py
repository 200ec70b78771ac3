"""The cases: what is wrong, how it comes about, and the command that meets it.

Each runs in a copy of the folder that `world.build` made. ``{evaluate}`` and ``{train}`` in a command stand for the
words below.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

WORDS = {
    "evaluate": "evaluate evaluate/folder.yaml data.kind=davis data.root=DAVIS evaluation.split=val output=out "
    "evaluation.sigmas=[30] checkpoint=net.ckpt trainer.accelerator=cpu",
    "train": "train train/demo.yaml data.root=DAVIS output=out data.crop=16 data.frames=3 data.workers=0 "
    "trainer.max_steps=1 trainer.accelerator=cpu validation.every=0 optimizer.warmup_steps=0 "
    "model.name=unet_tiny model.flow=zero",
}


def nothing() -> None:
    """All is well with the files."""


class Case(NamedTuple):
    """Something that is wrong.

    Attributes:
        what: in a few words, for the table.
        words: of the command; ``{name}`` stands for `WORDS[name]`.
        spoil: makes it so, in the working folder.
    """

    what: str
    words: str
    spoil: Callable[[], object] = nothing


def write(path: str, text: str | bytes) -> Callable[[], object]:
    def spoil() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def folder(path: str) -> Callable[[], object]:
    return lambda: Path(path).mkdir(parents=True)


def gone(path: str) -> Callable[[], object]:
    def spoil() -> None:
        if Path(path).is_dir():
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    return spoil


def settings(**changed: Any) -> Callable[[], object]:
    """The checkpoint's account of its network, changed."""

    def spoil() -> None:
        content = torch.load("net.ckpt", weights_only=True)
        content["stan"]["model"]["settings"].update(changed)
        torch.save(content, "net.ckpt")

    return spoil


def content(change: Callable[[dict], object]) -> Callable[[], object]:
    def spoil() -> None:
        content = torch.load("net.ckpt", weights_only=True)
        change(content)
        torch.save(content, "net.ckpt")

    return spoil


def weight(make: Callable[[torch.Tensor], Any]) -> Callable[[], object]:
    def change(content: dict) -> None:
        key = "enter.weight"
        content["weights"][key] = make(content["weights"][key])

    return content(change)


def nested(depth: int = 100_000) -> None:
    path = Path("net.safetensors")
    weights = safetensors.torch.load_file(path)
    safetensors.torch.save_file(weights, path, metadata={"stan": '{"a":' * depth + "1" + "}" * depth})


def flipped() -> None:
    data = bytearray(Path("net.ckpt").read_bytes())
    with zipfile.ZipFile("net.ckpt") as packed:
        info = max(packed.infolist(), key=lambda i: i.file_size)
    data[info.header_offset + 2000] ^= 255
    Path("net.ckpt").write_bytes(data)


def safetensors_header(change: Callable[[dict], object]) -> Callable[[], object]:
    def spoil() -> None:
        data = Path("net.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        Path("net.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def overlap(header: dict) -> None:
    header["enter.weight"]["data_offsets"] = header["leave.weight"]["data_offsets"]


def overlong(header: dict) -> None:
    header["enter.weight"]["data_offsets"][1] = 10**15


def big_number(header: dict) -> None:
    header["__metadata__"]["stan"] = '{"format":' + "9" * 5000 + "}"


def quantised(value: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def prepared(change: Callable[[], object]) -> Callable[[], object]:
    def spoil() -> None:
        from stan.cli import main

        assert main(["prepare", "davis", "--root", "DAVIS"]) == 0
        change()

    return spoil


def each_cache_file(ending: str, change: Callable[[Path], object]) -> Callable[[], object]:
    """A prepared data set, all of whose cache files of one kind are changed."""

    def change_all() -> None:
        for path in Path("DAVIS/.stan-cache").glob(f"*.{ending}"):
            change(path)

    return prepared(change_all)


def longer(manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace('"shape": [', '"shape": [7'))


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def in_record(change: Callable[[dict], object]) -> Callable[[], object]:
    """The checkpoint's record, changed."""
    return content(lambda whole: change(whole["stan"]))


def cut(path: str, size: int) -> Callable[[], object]:
    return lambda: os.truncate(path, size)


def huge_header() -> None:
    Path("net.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


FRAME = "DAVIS/JPEGImages/480p/b/00002.jpg"
LIST = "DAVIS/ImageSets/2017/train.txt"
SAFE = "{evaluate} checkpoint=net.safetensors"
LEVELS = 10**5

SECTIONS: dict[str, list[Case]] = {
    "Command line and configuration": [
        Case("an unknown command", "trian"),
        Case("no configuration", "train"),
        Case("a word of 5000 characters", "train train/demo.yaml " + "x" * 5000),
        Case("a key of 5000 characters", "train train/demo.yaml " + "x" * 5000 + "=1"),
        Case("a file name of 400 characters", "config " + "x" * 400 + ".yaml"),
        Case("a file name with a NUL character", "config c.yaml\0"),
        Case("a checkpoint for a configuration", "config net.ckpt"),
        Case("`include: 5`", "config c.yaml", write("c.yaml", "include: 5\n")),
        Case("`data: [1]`", "config c.yaml", write("c.yaml", "data: [1]\n")),
        Case("5000 brackets in a file", "config c.yaml", write("c.yaml", "a: " + "[" * 5000 + "]" * 5000)),
        Case("`optimizer.betas=[2,2]`", "config train/demo.yaml optimizer.betas=[2,2]"),
        Case("`optimizer.clip_norm=-1`", "config train/demo.yaml optimizer.clip_norm=-1"),
        Case("`noise.sigma=abc`", "config train/demo.yaml noise.sigma=abc"),
        Case("a number of 23 digits", "config train/demo.yaml trainer.max_steps=" + "9" * 23),
        Case("ten million blocks", "{train} model.settings.depths=[10000000,1]"),
        Case("a search window of 99999", "{train} model.settings.window=99999"),
    ],
    "Export": [
        Case("ONNX", "export net.ckpt net.onnx"),
        Case("an ending of its own", "export net.ckpt net.pth"),
        Case("a graph of no size", "export net.ckpt net.pt2"),
        Case("a graph with OpenCV's flow in it", "export net.ckpt net.pt2 --size 32x32 --flow dis"),
        Case("weights over the checkpoint", "export net.ckpt net.ckpt"),
        Case("a checkpoint that is not there", "export not.ckpt mine.safetensors"),
    ],
    "Output": [
        Case("output is a file", "{train}", write("out", "x")),
        Case("output is a file, evaluating", "{evaluate}", write("out", "x")),
        Case("output in /proc", "{train} output=/proc/stan"),
        Case("output inside a file", "{train} output=net.ckpt/x"),
        Case("output of 400 characters", "{train} output=" + "x" * 400),
        Case("a folder has the name of the checkpoint", "{train}", folder("out/last.ckpt")),
        Case("a folder has the name of the record", "{train}", folder("out/config.yaml")),
        Case("a file has the name of the folder of parts", "{evaluate}", write("out/parts", "x")),
        Case("`data.cache` inside a device", "{train} data.cache=/dev/null/x"),
        Case("`data.cache` is a file", "{train} data.cache=net.ckpt"),
    ],
    "Data": [
        Case("the data is a file", "{train} data.root=net.ckpt"),
        Case("the data is not there", "{evaluate} data.root=data/DAVIS"),
        Case("an empty folder", "{train} data.root=empty", folder("empty")),
        Case("no list of training sequences", "{train}", gone(LIST)),
        Case("a list that is no text", "{train}", lambda: shutil.copy("net.ckpt", LIST)),
        Case("a sequence deleted", "{train}", gone("DAVIS/JPEGImages/480p/b")),
        Case("a frame deleted", "{train}", gone(FRAME)),
        Case("a frame damaged after preparing", "{train}", prepared(write(FRAME, b"\xff\xd8\xff"))),
        Case("an empty frame", "{train}", write(FRAME, b"")),
        Case(
            "noisy and clean recordings as clean ones",
            "{train} data.kind=folder data.root=pair data.split=null",
        ),
        Case("pairs without the noisy half", "{train} data.kind=pairs data.root=pair/clean data.split=null"),
        Case(
            "pairs with a range of levels",
            "{train} data.kind=pairs data.root=pair/clean data.noisy=pair/noisy data.split=null noise.sigma=0..50",
        ),
        Case("a folder where the cache keeps frames", "{train}", each_cache_file("npy", to_folder)),
        Case(
            "cached frames overwritten with zeros",
            "{train}",
            each_cache_file("npy", lambda path: path.write_bytes(bytes(path.stat().st_size))),
        ),
        Case(
            "a cache that is not as it says",
            "{train}",
            each_cache_file(
                "json", lambda path: path.write_text(path.read_text().replace('"shape": [', '"shape": [7'))
            ),
        ),
        Case("prepare: the root is a file", "prepare davis --root net.ckpt"),
        Case("prepare: the archive is a folder", "prepare davis --root new --archive DAVIS"),
        Case(
            "prepare: the archive is text", "prepare davis --root new --archive x.zip", write("x.zip", "hi")
        ),
        Case("prepare: frames of 1000000x1000000", "prepare synthetic --root new --size 1000000x1000000"),
        Case("prepare: a seed below zero", "prepare synthetic --root new --seed -1"),
    ],
    "Checkpoints": [
        Case("ten million blocks", "{evaluate}", settings(depths=[10**7, 1])),
        Case("a hundred million channels", "{evaluate}", settings(channels=[10**8, 8])),
        Case("a thousand channels more than the file has", "{evaluate}", settings(channels=[2000, 8])),
        Case(
            "a hundred thousand levels",
            "{evaluate}",
            settings(channels=[8] * LEVELS, depths=[1] * LEVELS, heads=[0] * LEVELS),
        ),
        Case("a temporal window of a million", "{evaluate}", settings(temporal_window=10**6)),
        Case("text for channels", "{evaluate}", settings(channels="wide")),
        Case("text for all settings", "{evaluate}", in_record(lambda r: r["model"].update(settings="x"))),
        Case("a number for the network's name", "{evaluate}", in_record(lambda r: r["model"].update(name=5))),
        Case(
            "trained for NaN",
            "{evaluate}",
            in_record(lambda r: r["trained"].update(sigma=[float("nan")] * 2)),
        ),
        Case(
            "trained for endless steps",
            "{evaluate}",
            in_record(lambda r: r["trained"].update(steps=float("inf"))),
        ),
        Case("weights that are a list", "{evaluate}", content(lambda c: c.update(weights=[1]))),
        Case("a sparse weight", "{evaluate}", weight(lambda w: w.to_sparse())),
        Case("a weight without numbers", "{evaluate}", weight(lambda w: torch.empty_like(w, device="meta"))),
        Case("a quantised weight", "{evaluate}", weight(quantised)),
        Case("a complex weight", "{evaluate}", weight(lambda w: w.to(torch.complex64))),
        Case("a weight of whole numbers", "{evaluate}", weight(lambda w: w.to(torch.int64))),
        Case(
            "a weight of one number repeated",
            "{evaluate}",
            weight(lambda w: torch.zeros(1).expand(10**6, 10**6)),
        ),
        Case("a weight that is NaN", "{evaluate}", weight(lambda w: w * float("nan"))),
        Case("a flipped byte", "{evaluate}", flipped),
        Case("cut short", "{evaluate}", cut("net.ckpt", 5000)),
        Case("code", "{evaluate}", lambda: Path("net.ckpt").write_bytes(pickle.dumps(os.system))),
        Case("a folder", "{evaluate} checkpoint=DAVIS"),
        Case("safetensors: 100000 levels of metadata", SAFE, nested),
        Case("safetensors: weights that overlap", SAFE, safetensors_header(overlap)),
        Case("safetensors: a weight longer than the file", SAFE, safetensors_header(overlong)),
        Case("safetensors: a header of 2^62 bytes", SAFE, huge_header),
        Case("safetensors: a number of 5000 digits", SAFE, safetensors_header(big_number)),
    ],
}

CASES = [case for cases in SECTIONS.values() for case in cases]


def spoil(number: int) -> None:
    """Make what is wrong in a case, in the working folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch thinks of sparse and quantised tensors
        CASES[number].spoil()
