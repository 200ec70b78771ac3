"""`stan prepare`, from archives, folders and a server, to a checked data set."""

from __future__ import annotations

import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from stan.cli import main
from stan.data import MappedClip, cached, open_clips
from stan.data import prepare as prepare_module
from stan.data.prepare import DAVIS_ARCHIVES, Prepared, davis_urls, prepare
from stan.data.sources import SET8
from stan.errors import ConfigError, DataError
from tests.data.conftest import MakeDavis, picture, save
from tests.forked import Run

SEQUENCES = {"bear": 3, "cows": 2, "dog": 4}
LISTS = {"train": ["bear", "cows"], "val": ["dog"]}


def run(kind: str, root: Path, **options: object) -> Prepared:
    return prepare(kind, root, progress=False, **options)


def zipped(folder: Path, archive: Path, prefix: str = "DAVIS") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and ".stan-cache" not in path.parts:
                file.write(path, f"{prefix}/{path.relative_to(folder)}")
    return archive


def assert_same(root: Path, original: Path) -> None:
    """The frames of both are equal, and those of `root` come from its cache."""
    clips, truth = open_clips("davis", root), open_clips("davis", original)
    assert [clip.name for clip in clips] == [clip.name for clip in truth]
    for clip, other in zip(cached(clips), truth):
        assert isinstance(clip, MappedClip)
        assert torch.equal(clip.read(), other.read())


@pytest.fixture
def official(make_davis: MakeDavis) -> Path:
    """A DAVIS folder with what the official archive has beside the frames."""
    root = make_davis(SEQUENCES, LISTS, name="official")
    save(root / "Annotations/480p/bear/00000.png", picture(0))
    (root / "README.md").write_text("DAVIS 2017")
    return root


def test_an_archive(official: Path, tmp_path: Path) -> None:
    done = run("davis", tmp_path / "root", archives=[zipped(official, tmp_path / "a.zip")])
    assert done.sequences == [("bear", 3, 48, 64), ("cows", 2, 48, 64), ("dog", 4, 48, 64)]
    assert done.frames == 9
    assert done.lists == {"train": 2, "val": 1}
    assert done.cache == (
        sum(p.stat().st_size for p in (tmp_path / "root/.stan-cache").glob("*.npy")),
        tmp_path / "root/.stan-cache",
    )
    assert_same(tmp_path / "root", official)
    assert {p.name for p in (tmp_path / "root").iterdir()} == {"JPEGImages", "ImageSets", ".stan-cache"}


def test_a_tar_archive_without_a_top_folder(official: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(official / "JPEGImages", "JPEGImages")
        archive.add(official / "ImageSets", "ImageSets")
    run("davis", tmp_path / "root", archives=[tmp_path / "a.tgz"])
    assert_same(tmp_path / "root", official)


def test_two_archives_make_one_data_set(make_davis: MakeDavis, tmp_path: Path) -> None:
    one = make_davis({"bear": 2, "dog": 2}, {"train": ["bear"], "val": ["dog"]}, name="one")
    two = make_davis({"tractor": 3}, {"test-dev": ["tractor"]}, name="two")
    archives = [zipped(one, tmp_path / "1.zip"), zipped(two, tmp_path / "2.zip")]
    done = run("davis", tmp_path / "root", archives=archives)
    assert done.lists == {"test-dev": 1, "train": 1, "val": 1}
    assert [c.name for c in open_clips("davis", tmp_path / "root", "test-dev")] == ["tractor"]


def test_a_folder_is_copied_and_left_as_it_was(official: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in official.rglob("*")}
    run("davis", tmp_path / "root", source=official)
    assert_same(tmp_path / "root", official)
    assert {p: p.stat().st_mtime_ns for p in official.rglob("*")} == before


@pytest.mark.parametrize("inside", [".", "JPEGImages"])
def test_a_source_that_holds_the_root(inside: str, official: Path) -> None:
    with pytest.raises(DataError, match="lie inside each other"):
        run("davis", official / inside, source=official)
    assert len(open_clips("davis", official)) == 3


def test_in_place_and_again(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("davis", official)
    monkeypatch.setattr(prepare_module.Cache, "store", lambda *args, **kwargs: pytest.fail("decoded again"))
    assert run("davis", official) == first


def test_a_second_archive_replaces_damaged_sequences(official: Path, tmp_path: Path) -> None:
    archive = zipped(official, tmp_path / "a.zip")
    root = tmp_path / "root"
    run("davis", root, archives=[archive])
    (root / "JPEGImages/480p/dog/00001.jpg").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"1 problem: frame .*dog/00001\.jpg is damaged"):
        run("davis", root)
    run("davis", root, archives=[archive])
    assert_same(root, official)


def test_every_damaged_frame_is_named(official: Path) -> None:
    frames = official / "JPEGImages/480p"
    data = (frames / "bear/00001.jpg").read_bytes()
    (frames / "bear/00001.jpg").write_bytes(data[: len(data) // 2])
    (frames / "dog/00000.jpg").write_bytes(b"")
    (frames / "dog/00002.jpg").write_bytes(data[:-20])
    for options in ({}, {"build_cache": False}):
        with pytest.raises(DataError) as caught:
            run("davis", official, **options)
        said = str(caught.value)
        assert "bear/00001.jpg is damaged" in said
        assert "dog/00000.jpg is damaged: the file is empty" in said
        assert "dog/00002.jpg is damaged" in said
        assert said.startswith("3 problems")
        assert "\n" not in said


def test_frames_of_another_size_are_named(official: Path) -> None:
    save(official / "JPEGImages/480p/dog/00002.jpg", picture(0, 48, 80))
    with pytest.raises(DataError, match=r"dog/00002\.jpg is 80x48, but sequence 'dog' begins with 64x48"):
        run("davis", official)


def test_missing_sequences_of_a_list_are_named(official: Path) -> None:
    shutil.rmtree(official / "JPEGImages/480p/cows")
    with pytest.raises(DataError, match=r"train\.txt are missing \(1 of 2\): cows"):
        run("davis", official)
    shutil.rmtree(official / "JPEGImages/480p/bear")
    assert run("davis", official).notes == ["list train: none of its 2 sequences is here"]


def test_a_wrong_number_of_frames_in_an_official_list_is_noted(make_davis: MakeDavis) -> None:
    names = [f"s{i:02d}" for i in range(30)]
    root = make_davis(dict.fromkeys(names, 1), {"val": names}, size=(8, 8))
    assert run("davis", root).notes == ["list val has 30 frames; the official archive has 1999"]


def test_a_corrupt_cache_is_found_and_made_anew(official: Path) -> None:
    run("davis", official)
    payload = next((official / ".stan-cache").glob("dog-*.npy"))
    data = bytearray(payload.read_bytes())
    data[-1] ^= 255
    payload.write_bytes(data)
    run("davis", official)
    assert payload.read_bytes() != data
    assert_same(official, official)


def test_without_a_cache(official: Path, own_cache_home: Path) -> None:
    assert run("davis", official, build_cache=False).cache is None
    assert not (official / ".stan-cache").exists()
    assert not own_cache_home.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"readme.txt": b"hello"}, r"holds nothing of DAVIS at 480p"),
        ({"DAVIS/JPEGImages/Full-Resolution/bear/00000.jpg": b"x"}, r"holds nothing of DAVIS at 480p"),
        ({"DAVIS/JPEGImages/480p/bear/00000.jpg": b"x", "../evil": b"x"}, "refused"),
        ({"DAVIS/JPEGImages/480p/bear/00000.jpg": b"x"}, r"bear/00000\.jpg is damaged"),
    ],
)
def test_bad_archives(content: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=says):
        run("davis", tmp_path / "root", archives=[tmp_path / "a.zip"])
    left = {p.name for p in (tmp_path / "root").rglob("*")} if (tmp_path / "root").exists() else set()
    assert left <= {"JPEGImages", "480p", "bear", "00000.jpg", ".stan-cache"} | {
        n for n in left if "lock" in n
    }
    assert not (tmp_path / "evil").exists()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing: .*--download.*--archive.*--source"):
        run("davis", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty"):
        run("davis", tmp_path / "empty")
    with pytest.raises(DataError, match="is not a folder"):
        run("davis", tmp_path / "x", source=tmp_path / "no")
    with pytest.raises(ConfigError, match="unknown data kind"):
        run("vimeo", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"empty", "xdg-cache"}


def test_set8_gets_the_names_of_the_protocol(tmp_path: Path) -> None:
    for i, name in enumerate(SET8):
        label = {"touchdown": "Touchdown_pass", "park_joy": "park-joy"}.get(name, name)
        for k in range(2):
            save(tmp_path / f"Set8-main/test/{label}/{k:03d}.png", picture(10 * i + k))
    archive = zipped(tmp_path / "Set8-main", tmp_path / "a.zip", "Set8")
    done = run("set8", tmp_path / "root", archives=[archive])
    assert sorted(name for name, *_ in done.sequences) == sorted(SET8)
    assert done.frames == 16
    assert {p.name for p in (tmp_path / "root").iterdir()} == {*SET8, ".stan-cache"}


def test_own_folders(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"src/mine/one/{i}.png", picture(i))
        save(tmp_path / f"src/mine/two/{i}.jpg", picture(i, 20, 30))
    done = run("folder", tmp_path / "root", source=tmp_path / "src")
    assert done.sequences == [("one", 3, 48, 64), ("two", 3, 20, 30)]
    archive = zipped(tmp_path / "src/mine/one", tmp_path / "one.zip", "one")
    assert run("folder", tmp_path / "single", archives=[archive]).sequences == [("single", 3, 48, 64)]


def test_addresses_of_what_is_missing(official: Path, tmp_path: Path) -> None:
    base = "https://data.vision.ee.ethz.ch/csergi/share/davis/"
    assert davis_urls(tmp_path) == [base + name for name in DAVIS_ARCHIVES.values()]
    assert davis_urls(official) == [base + "DAVIS-2017-test-dev-480p.zip"]
    assert davis_urls(official, "trainval") == []
    assert davis_urls(tmp_path, "test-dev", "http://here/x/") == [
        "http://here/x/DAVIS-2017-test-dev-480p.zip"
    ]
    shutil.rmtree(official / "JPEGImages/480p/dog")
    assert davis_urls(official, "trainval") == [base + "DAVIS-2017-trainval-480p.zip"]


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_of_a_damaged_archive_is_removed(
    official: Path, mirror: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = mirror
    archive = zipped(official, folder / "a.zip")
    good = archive.read_bytes()
    archive.write_bytes(good[:-300] + bytes(300))
    root = tmp_path / "root"
    with pytest.raises(DataError, match="the download was removed, run the same command again"):
        run("davis", root, urls=[url + "a.zip"])
    archive.write_bytes(good)
    run("davis", root, urls=[url + "a.zip"], keep=True)
    assert (root / ".downloads/a.zip").read_bytes() == good
    assert_same(root, official)


def test_the_command_downloads_from_a_mirror(
    run_stan: Callable[..., Run], official: Path, mirror: tuple[str, Path], tmp_path: Path
) -> None:
    url, folder = mirror
    zipped(official, folder / DAVIS_ARCHIVES["trainval"])
    root = tmp_path / "root"
    done = run_stan("prepare", "davis", "--root", root, "--download", "--subset", "trainval", "--url", url)
    assert "3 sequences, 9 frames, 64x48" in done.stdout
    assert "split val: 1 sequences" in done.stdout
    assert done.stderr == ""
    assert not (root / ".downloads").exists()
    assert_same(root, official)


def test_the_command_names_a_damaged_frame_and_exits_with_2(
    official: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (official / "JPEGImages/480p/cows/00001.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    assert main(["prepare", "davis", "--root", str(official)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "cows/00001.jpg is damaged" in said


def test_the_command_makes_synthetic_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "synthetic"
    size = ["--size", "48x32", "--frames", "2", "--train", "3", "--val", "1"]
    assert main(["prepare", "synthetic", "--root", str(root), *size]) == 0
    assert "4 sequences, 8 frames, 48x32" in capsys.readouterr().out
    (clip,) = open_clips("davis", root, "val")
    assert clip.size == (32, 48)
    assert np.ptp(clip.read().numpy()) > 100


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["set8", "--download"], "no address is known for set8"),
        (["davis", "--url", "http://x/a.zip"], "--url needs --download"),
        (["synthetic", "--download"], "made here"),
        (["davis", "--sha256", "00"], "1 checksums for 0 downloads"),
    ],
)
def test_combinations_that_make_no_sense(args: list[str], says: str, tmp_path: Path) -> None:
    import argparse

    from stan.cli import prepare as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ConfigError, match=says):
        command.run(parser.parse_args([*args, "--root", str(tmp_path / "r")]))
    assert not (tmp_path / "r").exists()


def test_real_davis_in_place(shared_data: Path, tmp_path: Path) -> None:
    """Real sequences from an archive: checked, cached, and equal to the originals."""
    root = tmp_path / "root"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("judo",):
            for path in sorted((shared_data / "DAVIS/JPEGImages/480p" / name).iterdir()):
                archive.write(path, f"DAVIS/JPEGImages/480p/{name}/{path.name}")
        archive.writestr("DAVIS/ImageSets/2017/val.txt", "judo\n")
    done = run("davis", root, archives=[tmp_path / "a.zip"])
    assert done.sequences == [("judo", 16, 480, 854)]
    (truth,) = (c for c in open_clips("davis", shared_data / "DAVIS", "val") if c.name == "judo")
    assert torch.equal(cached(open_clips("davis", root, "val"))[0].read(), truth.read())
