"""Data sets in the layouts that their authors gave them, opened as clips."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from stan.data.clips import Clip, FrameClip
from stan.data.frames import is_image, natural_key
from stan.data.pairs import pair_up
from stan.data.video.reader import VideoClip
from stan.errors import ConfigError, DataError
from stan.registry import layouts

SET8 = ("tractor", "touchdown", "park_joy", "sunflower", "hypersmooth", "motorbike", "rafting", "snowboard")
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".y4m", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"}
)
DAVIS_FRAMES = Path("JPEGImages/480p")
"""Where a DAVIS folder keeps its frames, `<sequence>/<00000>.jpg`, whatever their true height."""
DAVIS_LISTS = Path("ImageSets/2017")
"""Where a DAVIS folder keeps its split lists, `<split>.txt`."""
_OFFICIAL = ("train", "val", "trainval", "test-dev")
_DAVIS_LAYOUT = f"{DAVIS_FRAMES}/<sequence>/<00000>.jpg and {DAVIS_LISTS}/<split>.txt"

Opener: TypeAlias = Callable[..., "list[Clip]"]
"""Opens the sequences of a data set that exists, in one layout: root and split to clips. One that takes `noisy` as a
keyword opens pairs."""


def open_clips(
    kind: str, root: Path | str, split: str | None = None, noisy: Path | str | None = None
) -> list[Clip]:
    """Open the sequences of a data set. Nothing is decoded yet, but first frames where sizes are compared (`pairs`).

    Args:
        kind: the layout, a name of `stan.registry.layouts`.
        root: the data set's folder (for `video` also a file).
        split: the sequences to open, in the order of the list. `davis`: the name of a list in
            ImageSets/2017 (`train`, `val`, `test-dev`, or any file that lies there); `trainval` stands for
            `train` and `val` together unless there is such a list. Other kinds: a list in `root`. For all
            kinds also the path of a text file, which comes before a list of the data set with that name.
            None: every sequence, by name.
        noisy: for `pairs` the place of the noisy recordings, `root` being that of the clean ones.

    Returns:
        At least one clip; `stan.data.pairs.PairedClip` for `pairs`.

    Raises:
        ConfigError: an unknown kind, or `noisy` where it has no meaning or is missing.
        DataError: a root that is missing, empty or laid out differently, or sequences that are missing. Says
            what was found, what was expected, and the nearest place that fits.
    """
    opener: Opener = layouts.component(kind).factory
    if takes_noisy(kind) and noisy is None:
        raise ConfigError(
            f"data.kind={kind} needs data.noisy, the noisy recordings, beside data.root with the clean ones"
        )
    if not takes_noisy(kind) and noisy is not None:
        raise ConfigError(f"data.noisy={noisy} goes with data.kind=pairs, and data.kind is {kind}")
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"data root {root} does not exist{_nearest(root)}{_brought(kind, root)}")
    if not root.is_dir() and kind not in ("video", "pairs"):
        raise DataError(f"data root {root} is a file: {kind!r} needs a folder")
    try:
        return opener(root, split) if noisy is None else opener(root, split, noisy=str(noisy))
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be read: permission denied") from None


def takes_noisy(kind: str) -> bool:
    """Whether a layout is of pairs of clean and noisy recordings.

    Raises:
        ConfigError: an unknown kind.
    """
    return "noisy" in layouts.settings(kind)


@layouts.register("davis")
def _open_davis(root: Path, split: str | None) -> list[Clip]:
    """JPEGImages/480p/<sequence>/<00000>.jpg, and ImageSets/2017/<split>.txt."""
    frames = root / DAVIS_FRAMES
    if not frames.is_dir():
        raise DataError(_wrong_davis_layout(root))
    found = {folder.name: folder for folder in _folders(frames)}
    if not found:
        raise DataError(f"{frames} holds no sequences: expected a folder of JPEG frames for each")
    names = sorted(found) if split is None else _davis_split(root, split)
    _require(names, found, f"{frames} (split {split!r})")
    return [_davis_clip(found[name], root) for name in names]


def _davis_clip(folder: Path, root: Path) -> Clip:
    clip = _frame_clip(folder.name, folder, root)
    numbers = [path.stem for path in clip.files]
    # A frame that is missing would pass for fast motion, so a gap in the numbers is an error.
    for i, number in enumerate(numbers):
        if not number.isdigit() or int(number) != int(numbers[0]) + i:
            missing = f"{int(numbers[0]) + i:0{len(numbers[0])}d}" if numbers[0].isdigit() else "00000"
            raise DataError(f"sequence {folder}: expected frame {missing}, found {clip.files[i].name}")
    return clip


def _davis_split(root: Path, split: str) -> list[str]:
    lists = root / DAVIS_LISTS
    if (path := _list_path(split, lists)) is not None:
        return read_list(path)
    parts = [lists / "train.txt", lists / "val.txt"]
    both = all(part.is_file() for part in parts)
    if split == "trainval" and both:
        return list(dict.fromkeys(name for part in parts for name in read_list(part)))
    raise DataError(_no_split(split, lists, extra=["trainval"] if both else []))


def _wrong_davis_layout(root: Path) -> str:
    """Say what is there instead of the DAVIS layout, and where the layout is, if near."""
    if not any(root.iterdir()):
        return f"data root {root} is empty: {_DAVIS_LAYOUT} expected (stan prepare davis --root {root})"
    for parent in list(root.resolve().parents)[:4]:
        if (parent / DAVIS_FRAMES).is_dir():
            return f"data root {root} is inside a DAVIS folder: use its top, {parent}"
    for child in _folders(root):
        for place in (child, *_folders(child)):
            if (place / DAVIS_FRAMES).is_dir():
                return f"data root {root} is above the DAVIS folder: use {place}"
    if (root / "JPEGImages").is_dir():
        other = ", ".join(folder.name for folder in _folders(root / "JPEGImages")) or "nothing"
        return f"data root {root} has JPEGImages with {other}: the 480p version of DAVIS is needed"
    return f"data root {root} is not laid out as DAVIS ({_DAVIS_LAYOUT}): {_found_in(root)}"


@layouts.register("set8")
def _open_set8(root: Path, split: str | None) -> list[Clip]:
    """A folder of PNG frames for each of the eight sequences."""
    found: dict[str, Path] = {}
    for folder in _folders(root):
        if (name := set8_name(folder.name)) is not None:
            found.setdefault(name, folder)
    if not found:
        for place in (root.parent, *_folders(root)):
            if sum((place / name).is_dir() for name in SET8) >= 2:
                raise DataError(f"data root {root} is not laid out as Set8: use {place}")
        raise DataError(
            f"data root {root} is not laid out as Set8 (a folder of PNG frames for each of "
            f"{', '.join(SET8)}): {_found_in(root)}"
        )
    return [_frame_clip(name, found[name], root) for name in _chosen(root, split, found, SET8)]


def set8_name(folder: str) -> str | None:
    """Give the Set8 sequence that a folder's name stands for (`park_joy`, `Park-Joy_540p`), or None."""
    plain = folder.lower().replace("-", "_")
    return next((name for name in SET8 if plain == name or plain.startswith(f"{name}_")), None)


@layouts.register("folder")
def _open_folder(root: Path, split: str | None) -> list[Clip]:
    """A folder of frames, or of such folders and video files."""
    own = _images(root)
    folders = [folder for folder in _folders(root) if _images(folder)]
    videos = _videos(root)
    if own and (folders or videos):
        other = (folders + videos)[0].name
        raise DataError(
            f"data root {root} holds frames ({own[0].name}) beside sequences ({other}): separate them"
        )
    if own:
        if split is not None:
            raise DataError(f"data root {root} is one sequence of frames, so split {split!r} has no meaning")
        return [FrameClip(root.resolve().name, own, root)]
    found: dict[str, Path] = {}
    for path in sorted(folders + videos, key=natural_key):
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise DataError(
                f"data root {root}: {found[name].name} and {path.name} are both sequence {name!r}"
            )
        found[name] = path
    if not found:
        deeper = next((f for folder in _folders(root) for f in _folders(folder) if _images(f)), None)
        hint = f", but {deeper.parent} holds such folders" if deeper else ""
        if (root / DAVIS_FRAMES).is_dir():
            hint = ", but is laid out as DAVIS: use kind 'davis'"
        raise DataError(
            f"data root {root} has neither frames, folders of frames nor videos{hint}: {_found_in(root)}"
        )
    names = _chosen(root, split, found, found)
    if (pair := _pair(found[name] for name in names)) is not None:
        noisy, clean = pair
        raise DataError(
            f"data root {root} holds noisy recordings beside clean ones ({noisy.name}, {clean.name}), and kind "
            f"'folder' would take both for clean: to learn from the pair, data.kind=pairs data.root={clean} "
            f"data.noisy={noisy}; or give the clean ones alone, data.root={clean}"
        )
    return [
        _frame_clip(name, found[name], root) if found[name].is_dir() else VideoClip(found[name], root)
        for name in names
    ]


@layouts.register("video")
def _open_video(root: Path, split: str | None) -> list[Clip]:
    """A video file, or a folder of them."""
    if root.is_file():
        return [VideoClip(root, root.parent)]
    found = {path.stem: path for path in _videos(root)}
    if not found:
        raise DataError(f"data root {root} has no video files: {_found_in(root)}")
    return [VideoClip(found[name], root) for name in _chosen(root, split, found, found)]


@layouts.register("pairs")
def _open_pairs(root: Path, split: str | None, *, noisy: str) -> list[Clip]:
    """Clean and noisy recordings of the same scenes in two places (`data.root`, `data.noisy`), by the same names.

    Args:
        root: the clean ones: a video file, a folder of frames, or of such folders and video files.
        split: a list in `root`.
        noisy: `data.noisy`, the place of the noisy ones, laid out as `data.root`
    """
    other = Path(noisy).expanduser()
    if not other.exists():
        raise DataError(f"data.noisy={other} does not exist{_nearest(other)}")
    if other.samefile(root):
        raise DataError(f"data.noisy={other} is data.root itself: the noisy recordings lie elsewhere")
    clean, found = _open_side(root, split), _open_side(other, None)
    if split is not None:  # what the list leaves out is nobody's half
        names = {clip.name for clip in clean}
        found = [clip for clip in found if clip.name in names]
    return list(pair_up(clean, found, (root, other)))


def _open_side(root: Path, split: str | None) -> list[Clip]:
    return (_open_video if root.is_file() else _open_folder)(root, split)


_NOISY = ("noisy", "noise", "input")
_CLEAN = ("clean", "original", "gt", "target", "reference", "denoised", "ground_truth")


def _pair(sequences: Iterable[Path]) -> tuple[Path, Path] | None:
    """The noisy and the clean of two sequences that are called so (`noisy`, `clip7_noisy`), or None."""
    named = {path.stem.lower(): path for path in sequences}
    for name, path in named.items():
        if match := re.fullmatch(rf"(.*[^a-z])?({'|'.join(_NOISY)})", name):
            before = match[1] or ""
            for word in _CLEAN:
                if before + word in named:
                    return path, named[before + word]
    return None


def _frame_clip(name: str, folder: Path, root: Path) -> FrameClip:
    paths = _images(folder)
    if not paths:
        raise DataError(f"sequence {folder} has no frames: {_found_in(folder)}")
    return FrameClip(name, paths, root)


def read_list(path: Path) -> list[str]:
    """Read a split list: one sequence name a line; blank lines and lines that begin with # are left out.

    Raises:
        DataError: no names, a name twice, or a name that is a path.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split list {path} cannot be read: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise DataError(f"split list {path} is empty: one sequence name a line is expected")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"split list {path} has {name!r} twice")
        if Path(name).name != name or name in (".", ".."):
            raise DataError(f"split list {path} has {name!r}: expected the name of a sequence, not a path")
    return names


def _chosen(root: Path, split: str | None, found: dict[str, Path], every: Iterable[str]) -> list[str]:
    """The sequences of a split list in `root`, or without a split every one; all of them must have been found."""
    names = list(every)
    if split is not None:
        if (path := _list_path(split, root)) is None:
            raise DataError(_no_split(split, root))
        names = read_list(path)
    _require(names, found, str(root))
    return names


def _list_path(split: str, lists: Path) -> Path | None:
    here, theirs = Path(split).expanduser(), [lists / f"{split}.txt", lists / split]
    found = [path for path in (here, *theirs) if path.suffix == ".txt" and path.is_file()]
    if len(found) > 1 and found[0] == here and not here.samefile(found[1]):
        _say(f"split {split!r} is the file here, not {found[1]}, which is {found[1].stem!r}")
    return found[0] if found else None


@functools.cache
def _say(line: str) -> None:
    """Tell it on standard error, once."""
    print(f"stan: {line}", file=sys.stderr)


def _no_split(split: str, lists: Path, extra: Iterable[str] = ()) -> str:
    known = sorted(path.stem for path in lists.glob("*.txt")) if lists.is_dir() else []
    others = [] if split in _OFFICIAL else [*known, *extra]  # no slip of the pen: the list itself is missing
    near = difflib.get_close_matches(split, others, n=1)
    hint = f"did you mean {near[0]!r}? " if near and near[0] != split else ""
    there = f"there are {', '.join(known)}" if known else "there are no lists"
    return f"split {split!r} not found in {lists}: {hint}{there}"


def _require(names: list[str], found: dict[str, Path], where: str) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        near = difflib.get_close_matches(missing[0], found, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"{len(missing)} of {len(names)} sequences are missing in {where}: {listed}{hint}")


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def visible(folder: Path, wanted: Callable[[Path], bool] = lambda path: True) -> list[Path]:
    """The entries of a folder that are not hidden, in natural order (9 before 10)."""
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".") and wanted(p)), key=natural_key)


def _folders(path: Path) -> list[Path]:
    return visible(path, Path.is_dir)


def _images(path: Path) -> list[Path]:
    return visible(path, is_image)


def _videos(path: Path) -> list[Path]:
    return visible(path, is_video)


def _found_in(folder: Path) -> str:
    entries = sorted(p.name + ("/" if p.is_dir() else "") for p in visible(folder))
    if not entries:
        return "it is empty"
    return f"it holds {', '.join(entries[:4])}" + (
        f" and {len(entries) - 4} more" if len(entries) > 4 else ""
    )


def _brought(kind: str, root: Path) -> str:
    """The command that brings a data set that is missing."""
    words = {"davis": "--download", "set8": "--source DIR"}.get(kind)
    return f"; to get it: stan prepare {kind} --root {root} {words}" if words else ""


def _nearest(root: Path) -> str:
    """Point at the deepest folder that exists, and at a name like the missing one."""
    parent = root.absolute()
    while not parent.exists() and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    if not parent.is_dir():
        return ""
    near = difflib.get_close_matches(missing, [p.name for p in parent.iterdir()], n=1)
    return f": did you mean {parent / near[0]}?" if near else f" (nothing named {missing!r} in {parent})"
