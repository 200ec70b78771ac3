"""The report page: self-contained, complete, right in what it draws, and alive in a real browser."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from stan import config as configs
from stan.evaluation import evaluate, psnr
from stan.evaluation.charts import HEIGHT, WIDTH, Series, line_chart, ticks
from stan.evaluation.gallery import Gallery
from stan.evaluation.published import comparable, value_at
from stan.evaluation.report import html, markdown
from stan.evaluation.results import Results, means
from stan.evaluation.sheet import SheetRow, error_picture, picture_sheet, write_sheet
from stan.metrics import METRICS


@pytest.fixture(scope="module")
def results(
    davis_root: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Two methods, one with a name that would break a careless page, on two sequences at three levels."""
    folder = tmp_path_factory.mktemp("results")
    odd = folder / "a<b> & 'c'|d.ckpt"
    shutil.copy(checkpoints["known"], odd)
    words = [
        f"data.root={davis_root}",
        "data.kind=davis",
        f"output={folder / 'out'}",
        "trainer.accelerator=cpu",
    ]
    words += ["evaluation.split=trainval", "evaluation.sequences=[b,d]", "evaluation.max_frames=5"]
    config = configs.load(configs.builtin_configs() / "evaluate/folder.yaml", words)
    config.checkpoint = [str(odd), "nlmeans"]
    with open(os.devnull, "w") as nowhere:
        return evaluate(config, console=Console(file=nowhere))


class Page(HTMLParser):
    """Tags with their attributes, table cells, and text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.scripts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "line", "polyline", "circle", "br"):
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data
        if self.open and self.open[-1] == "script":
            self.scripts[self.tags[-1][1].get("id") or "code"] = data


def test_page_is_well_formed_and_asks_for_nothing(results: Results) -> None:
    text = html(results)
    page = Page(text)
    assert page.open == []
    without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures)
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "action", "data", "srcset") if k in a]
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a[1:] for a in addresses if a and a.startswith("#")} <= anchors
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "<b> & 'c'" not in text
    assert any("a<b> & 'c'|d" in cell for cell in page.cells)


def test_page_shows_every_figure(results: Results) -> None:
    cells = " ".join(Page(html(results)).cells)
    for row in [*results.means, *results.sequences]:
        for name in ("psnr", "ssim", "strred", "flicker", "psnr_noisy"):
            assert METRICS[name].show(row[name]) in cells
    text = html(results)
    for method in results.methods:
        if "sha256" in method:
            assert method["sha256"] in text
    for word in ("numpy PCG64", results.settings["versions"]["torch"], "departs from protocol quick"):
        assert word in text


def test_pictures_are_those_of_the_sequences(results: Results) -> None:
    pictures = json.loads(Page(html(results)).scripts["pictures"])
    method = results.methods[0]["name"]
    assert pictures.keys() == {"b", "d"}
    for name, size in {"b": (56, 80), "d": (48, 64)}.items():
        assert pictures[name].keys() == {"10", "30", "50"}
        files = {key: decode(value) for key, value in pictures[name]["30"].items()}
        assert {"noisy", "clean", f"m|{method}", "m|nlmeans", f"e|{method}", "e|nlmeans"} <= files.keys()
        for key, picture in files.items():
            assert picture.shape == ((5, size[1], 3) if key.endswith("|slice") else (*size, 3))
        truth = results.parts.pictures(results.pieces[(method, name, 30.0)])
        for key, array in {"clean": truth["clean"], "noisy": truth["noisy"]}.items():
            assert float(np.abs(files[key].astype(int) - array).mean()) < 8  # JPEG, of high quality


def decode(address: str) -> np.ndarray:
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/jpeg"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pictures_keep_to_their_budget(results: Results) -> None:
    small = Gallery(results, budget=1)
    assert {tuple(levels) for levels in small.pictures.values()} == {("30",)}
    assert "2 noise levels are left out" in small.remark
    whole = Gallery(results)
    assert {tuple(sorted(levels)) for levels in whole.pictures.values()} == {("10", "30", "50")}


def test_crop_shows_the_part_with_moving_detail() -> None:
    from stan.evaluation.measure import best_crop

    frames = torch.full((2, 3, 400, 600), 90, dtype=torch.uint8)
    noise = torch.randint(0, 255, (60, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames[:, :, 20:80, 20:80] = noise  # detail that does not move
    frames[0, :, 300:360, 500:560] = noise
    frames[1, :, 302:362, 503:563] = noise
    top, left, height, width = best_crop(frames, 128)
    assert (height, width) == (128, 128)
    assert top <= 302
    assert left <= 503
    assert top + 128 >= 362
    assert left + 128 >= 563
    assert best_crop(frames[..., :50, :60], 128) == (0, 0, 50, 60)


@settings(deadline=None, derandomize=True)
@given(low=st.floats(-1e4, 1e4), span=st.floats(0, 1e4))
def test_ticks_are_round_and_enclose(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 8
    assert marks[0] <= low + 1e-6 * max(1, abs(low))
    assert marks[-1] >= low + span - 1e-6 * max(1, abs(low + span))
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0])


def test_chart_draws_points_where_they_belong() -> None:
    chart = line_chart(
        [Series("x & y", "s0", [(10, 30.0), (20, math.nan), (30, 40.0)])],
        x_label="sigma", y_label="PSNR", marks=True, title="t",
    )  # fmt: skip
    Page(chart)
    (points,) = re.findall(r'points="([^"]+)"', chart)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in points.split())
    ticks_y = {
        float(v): float(y) - 3.5 for y, v in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', chart)
    }
    assert y0 == pytest.approx(ticks_y[30], abs=0.11)
    assert y1 == pytest.approx(ticks_y[40], abs=0.11)
    ticks_x = {
        float(v): float(x)
        for x, v in re.findall(
            r'<text class="tick" x="([\d.]+)" y="\d+" text-anchor="middle">([\d.]+)<', chart
        )
    }
    assert (x0, x1) == (ticks_x[10], ticks_x[30])
    assert 0 <= y1 < y0 <= HEIGHT
    assert 0 <= x0 < x1 <= WIDTH
    attribute = re.search(r'data-chart="([^"]+)"', chart)
    assert attribute is not None
    readings = json.loads(unescape(attribute[1]))
    assert readings["lines"] == [{"name": "x & y", "style": "s0", "y": ["30.00", "40.00"]}]
    assert (
        line_chart([Series("x", "s0", [(1, math.nan)])], x_label="", y_label="", marks=True, title="") == ""
    )


def test_one_point_and_equal_values_make_a_chart() -> None:
    for points in ([(5, 1.0)], [(1, 7.0), (2, 7.0)], [(0, 0.0)]):
        chart = line_chart([Series("a", "s0", points)], x_label="x", y_label="y", marks=False, title="t")
        assert "nan" not in chart
        assert "<polyline" in chart


def test_markdown_tables_are_straight(results: Results) -> None:
    block: list[int] = []
    for line in [*markdown(results).splitlines(), ""]:
        if line.startswith("|"):
            block.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(block)) <= 1
            block = []
    assert "a<b> & 'c'\\|d" in markdown(results)


def test_means_are_over_sequences_not_frames() -> None:
    def row(sequence: str, frames: int, psnr: float, memory: float) -> dict[str, object]:
        zero = dict.fromkeys(
            ("psnr_rounded", "ssim", "strred", "strred_unit", "flicker", "psnr_noisy", "ssim_noisy",
             "strred_noisy", "flicker_noisy", "seconds_per_frame"), 0.0,
        )  # fmt: skip
        return {**zero, "method": "m", "sigma": 30.0, "sequence": sequence, "frames": frames, "psnr": psnr,
                "memory_mib": memory}  # fmt: skip

    (mean,) = means([row("a", 100, 30, 5), row("b", 10, 40, 9)])
    assert (mean["psnr"], mean["sequences"], mean["frames"], mean["memory_mib"]) == (35, 2, 110, 9)


def test_published_figures_stand_beside_the_same_protocol_only() -> None:
    same = {"protocol": "davis-85", "departures": []}
    davis = {p.name: values for p, values in comparable(same)}
    assert value_at(davis["FastDVDnet"], 30) == 34.04
    assert value_at(davis["FastDVDnet"], 35) is None
    set8 = {p.name: values for p, values in comparable({**same, "protocol": "set8"})}
    assert set8["VRT"][4] == 31.22
    assert "Shift-Net+" not in set8
    assert comparable({**same, "departures": ["split val, not test-dev"]}) == []
    assert comparable({**same, "protocol": "quick"}) == []


def test_picture_sheet(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (3, 40, 200), generator=generator, dtype=torch.uint8)
    noisy = clean / 255 + 0.1 * torch.randn(clean.shape, generator=generator)
    path = write_sheet(tmp_path / "sheet.png", [SheetRow("one", noisy, clean, clean)] * 2)
    sheet = cv2.imread(str(path))[..., ::-1]
    assert np.array_equal(sheet, picture_sheet([SheetRow("one", noisy, clean, clean)] * 2))
    assert contains(sheet, clean.permute(1, 2, 0).numpy())
    assert contains(sheet, error_picture(np.zeros((40, 200, 3), np.uint8), np.zeros((40, 200, 3), np.uint8)))
    assert float(psnr(clean[None] / 255, noisy[None])) < 25
    with pytest.raises(ValueError, match="at least one row"):
        picture_sheet([])


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a picture lies somewhere in the sheet, pixel for pixel."""
    places = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], picture.shape[1], axis=1)
    hits = np.argwhere((places == picture[0, :, 0]).all(-1))
    height, width = picture.shape[:2]
    return any(np.array_equal(sheet[y : y + height, x : x + width], picture) for y, x in hits)


def test_errors_are_drawn_from_black_to_white() -> None:
    clean = np.full((1, 4, 3), 100, np.uint8)
    output = clean + np.array([0, 10, 40, 150], np.uint8)[None, :, None]
    light = error_picture(clean, output).astype(int).sum(-1)[0]
    assert light[0] < 10
    assert light[0] < light[1] < light[2] == light[3]
    assert light[3] > 600


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PROBE = """<script>
const said = {};
const one = document.querySelector('.sequence'), pane = one.querySelector('.viewer');
const [under, over] = pane.querySelectorAll('img');
const shown = [...document.querySelectorAll('.viewer img, .slices img')];
said.loaded = shown.every(i => i.src.startsWith('data:'));
said.clip = over.style.clipPath;
one.querySelector('.flip').click();
said.flipped = over.style.clipPath;
const [left, right] = one.querySelectorAll('select');
right.value = 'clean'; right.dispatchEvent(new Event('change'));
said.clean = under.src === pictures.b['30'].clean;
document.querySelector('.bar button[value="50"]').click();
said.level = under.src === pictures.b['50'].clean;
said.visible = [...one.querySelectorAll('[data-sigma]')].filter(e => !e.hidden).map(e => e.dataset.sigma);
const box = pane.getBoundingClientRect();
pane.dispatchEvent(new PointerEvent('pointermove',
  {clientX: box.left + box.width / 4, clientY: box.top + 9, pointerType: 'mouse'}));
said.dragged = over.style.clipPath;
document.querySelector('.theme').click();
said.theme = document.documentElement.dataset.theme;
said.wide = document.documentElement.scrollWidth <= innerWidth;
const chart = document.querySelector('svg.chart'), frame = chart.getBoundingClientRect();
chart.dispatchEvent(new PointerEvent('pointermove',
  {clientX: frame.left + frame.width / 2, clientY: frame.top}));
said.tip = document.querySelector('.tip').innerText;
document.title = JSON.stringify(said);
</script>"""


Look = Callable[[Path, int], tuple[str, str]]


@pytest.fixture
def browser(tmp_path: Path) -> Look:
    """Opens a page in headless Chromium and gives the document it ends with and what the console said."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")

    def look(page: Path, width: int) -> tuple[str, str]:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
             "--enable-logging=stderr",
             "--virtual-time-budget=4000", "--dump-dom", page.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return look


@pytest.mark.parametrize("width", [500, 1280])
def test_page_lives_in_chromium(results: Results, tmp_path: Path, browser: Look, width: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(html(results).replace("</body>", PROBE + "</body>"))
    document, console = browser(page, width)
    assert console == ""
    assert 'data-ready="yes"' in document
    title = re.search(r"<title>(.*?)</title>", document, re.S)
    assert title is not None
    said = json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert all(said[what] for what in ("loaded", "clean", "level", "wide")), said
    assert said["clip"] == "inset(0px 50% 0px 0px)"
    assert said["flipped"] == "inset(0px 0% 0px 0px)"  # all of the left picture
    assert said["dragged"] == "inset(0px 75% 0px 0px)"
    assert said["visible"] == ["50"]
    assert said["theme"] == "dark"
    assert "nlmeans" in said["tip"]
    assert "sigma 30" in said["tip"]
