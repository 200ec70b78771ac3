"""Streaming: the delay is what is promised, windows end at cuts, and flow is estimated once per pair."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stan.data.frame import Frame
from stan.data.video.raw import RawFormat
from stan.errors import StanError, VideoError
from stan.flow import FlowPair, OffsetSource
from stan.inference import Options, SigmaRangeWarning, mark_scenes
from stan.inference.stream import StreamDenoiser, denoise_stream
from stan.models import Trained

from .networks import StandIn, identity

pytestmark = pytest.mark.timeout(60)
SIZE = (12, 16)


def causal(model: StandIn) -> StandIn:
    model.causal = True
    return model


def frames(count: int, seed: int = 0) -> list[Tensor]:
    """Frames of one scene: the same picture with some noise, values that 8 bits hold."""
    random = torch.Generator().manual_seed(seed)
    still = torch.rand(3, *SIZE, generator=random)
    noisy = [(still + torch.randn(still.shape, generator=random) * 0.02).clamp(0, 1) for _ in range(count)]
    return [(f * 255).round() / 255 for f in noisy]


def raw(video: list[Tensor]) -> bytes:
    return b"".join((f * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes() for f in video)


def reading(data: bytes) -> list[Tensor]:
    values = np.frombuffer(data, np.uint8).reshape(-1, *SIZE, 3)
    return [torch.from_numpy(v.copy()).permute(2, 0, 1) / 255 for v in values]


def streamed(stream: StreamDenoiser, video: list[Tensor]) -> list[Tensor]:
    return [frame.rgb for frame in stream(mark_scenes(map(Frame, video), look_ahead=False))]


class CountingSource(OffsetSource):
    """Flow that tells the frames it was asked for: the value is the mean of the frame it starts from."""

    name = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def estimate(self, video: Tensor) -> FlowPair:
        self.calls += 1
        means = video.mean((2, 3, 4))[:, :, None, None, None].expand(-1, -1, 2, *video.shape[-2:]).clone()
        forward, backward = means.clone(), means.clone()
        forward[:, -1], backward[:, 0] = 0, 0
        return FlowPair(forward, backward)


@pytest.mark.parametrize("reach", [0, 1, 2])
@pytest.mark.parametrize("looks_ahead", [True, False])
def test_delay_is_at_most_the_reach(reach: int, looks_ahead: bool) -> None:
    model = StandIn(lambda noisy, _, __: noisy, temporal_reach=reach)
    model.causal = not looks_ahead
    stream = StreamDenoiser(model)
    delay = reach if looks_ahead else 0
    assert stream.delay == delay
    video = frames(8)
    taken = 0

    def incoming() -> Iterator[Frame]:
        nonlocal taken
        for frame in video:
            taken += 1
            yield Frame(frame)

    given: list[Tensor] = []
    for frame in stream(mark_scenes(incoming(), look_ahead=False)):
        given.append(frame.rgb)
        assert taken == min(len(given) + delay, 8)
    assert len(given) == 8
    for a, b in zip(given, video):
        assert torch.equal(a, b)


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_each_frame_is_denoised_from_its_window(looks_ahead: bool) -> None:
    """The network sees exactly the frames of the window: its mean over time is that of those frames."""
    model = StandIn(lambda noisy, _, __: noisy.mean(1, keepdim=True).expand_as(noisy), temporal_reach=1)
    model.causal = not looks_ahead
    video = frames(6)
    given = streamed(StreamDenoiser(model, Options(window=3)), video)
    for t, out in enumerate(given):
        last = min(t + 1, 5) if looks_ahead else t
        first = max(0, last - 2)
        torch.testing.assert_close(out, torch.stack(video[first : last + 1]).mean(0))


def test_windows_end_at_cuts() -> None:
    model = StandIn(lambda noisy, _, __: noisy.mean(1, keepdim=True).expand_as(noisy), temporal_reach=2)
    dark, bright = [f * 0.2 for f in frames(6)], [f * 0.2 + 0.7 for f in frames(6, seed=1)]
    given = streamed(StreamDenoiser(model), dark + bright)
    assert len(given) == 12
    assert all(out.mean() < 0.2 for out in given[:6])
    assert all(out.mean() > 0.7 for out in given[6:])


def test_flow_is_estimated_once_per_pair_and_lies_where_it_belongs() -> None:
    seen: list[FlowPair] = []

    def core(noisy: Tensor, _: object, flow: FlowPair) -> Tensor:
        seen.append(flow)
        return noisy

    source = CountingSource()
    model = StandIn(core, temporal_reach=1, source=source)
    video = [torch.full((3, *SIZE), 0.05 * (t + 1)) for t in range(6)]
    streamed(StreamDenoiser(model), video)
    assert source.calls == 5
    flow = seen[3]  # frames 2, 3, 4
    assert flow.forward.shape == (1, 3, 2, *SIZE)
    torch.testing.assert_close(flow.forward[0, :, 0, 0, 0], torch.tensor([0.15, 0.2, 0.0]))
    torch.testing.assert_close(flow.backward[0, :, 0, 0, 0], torch.tensor([0.0, 0.2, 0.25]))


def test_a_window_that_is_too_short() -> None:
    with pytest.raises(StanError, match="window=2 frames must be at least 3"):
        StreamDenoiser(StandIn(lambda noisy, _, __: noisy, temporal_reach=2), Options(window=2))
    with pytest.raises(StanError, match="at most 1000"):
        StreamDenoiser(identity(), Options(window=10**20))


def test_raw_bytes_pass_an_identity_unchanged() -> None:
    data = raw(frames(7))
    output = io.BytesIO()
    assert denoise_stream(identity(), io.BytesIO(data), output, raw=RawFormat(*SIZE, "rgb24")).frames == 7
    assert output.getvalue() == data


def test_of_an_interlaced_stream_it_is_said() -> None:
    source = ["-f", "lavfi", "-i", "testsrc=s=16x12:d=0.2", "-pix_fmt", "yuv420p"]
    for interlace in ([], ["-vf", "tinterlace=4"]):
        command = ["ffmpeg", "-v", "error", *source, *interlace, "-f", "yuv4mpegpipe", "-"]
        y4m = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        lines: list[str] = []
        denoise_stream(identity(), io.BytesIO(y4m), io.BytesIO(), Options(tell=lines.append))
        assert any("interlaced" in line for line in lines) == bool(interlace)


def test_given_and_estimated_sigma_reach_the_network() -> None:
    seen: list[float] = []

    def core(noisy: Tensor, noise_map: Tensor | None, _: object) -> Tensor:
        assert noise_map is not None
        seen.append(float(noise_map[0, -1].mean()) * 255)
        return noisy

    model = causal(StandIn(core, blind=False))
    model.trained = Trained("gaussian", (5.0, 10.0), 1)
    data = raw(frames(5))
    with pytest.warns(SigmaRangeWarning, match=r"sigma 30 is outside .* \(5 to 10\)"):
        denoise_stream(
            model,
            io.BytesIO(data),
            io.BytesIO(),
            Options(sigma=20.0, strength=1.5),
            RawFormat(*SIZE, "rgb24"),
        )
    np.testing.assert_allclose(seen, 30.0, rtol=1e-5)
    seen.clear()
    noise = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 20 / 255 + 0.5
    lines: list[str] = []
    with pytest.warns(SigmaRangeWarning):
        denoise_stream(
            model,
            io.BytesIO(raw(list(noise))),
            io.BytesIO(),
            Options(tell=lines.append),
            RawFormat(64, 64, "rgb24"),
        )
    np.testing.assert_allclose(seen, 20.0, rtol=0.1)
    assert any("estimated" in line for line in lines)
    assert any("delay of 0 frames" in line for line in lines)


def test_a_cut_forgets_the_noise_before_it() -> None:
    seen: list[float] = []

    def core(noisy: Tensor, noise_map: Tensor | None, _: object) -> Tensor:
        assert noise_map is not None
        seen.append(float(noise_map[0, -1].mean()) * 255)
        return noisy

    generator = torch.Generator().manual_seed(0)
    noise = (
        torch.randn(10, 3, 64, 64, generator=generator)
        * torch.tensor([40.0] * 5 + [5.0] * 5)[:, None, None, None]
    )
    video = (torch.tensor([0.3] * 5 + [0.7] * 5)[:, None, None, None] + noise / 255).clamp(0, 1)
    model = causal(StandIn(core, blind=False))
    for scenes in (True, False):
        seen.clear()
        options = Options(sigma="auto", scenes=scenes)
        denoise_stream(model, io.BytesIO(raw(list(video))), io.BytesIO(), options, RawFormat(64, 64, "rgb24"))
        assert seen[4] == pytest.approx(40, rel=0.15)
        assert seen[5] == pytest.approx(5 if scenes else 40, rel=0.15)


@pytest.mark.parametrize("delay", [0, 1])
def test_frames_come_out_while_the_pipe_is_still_open(tmp_path: Path, delay: int) -> None:
    """Frame t is written as soon as frame t + delay has been read, through real pipes."""
    model = StandIn(lambda noisy, _, __: noisy, temporal_reach=1)
    model.causal = delay == 0
    to_network, ours = os.pipe()
    theirs, from_network = os.pipe()
    source, sink = os.fdopen(to_network, "rb"), os.fdopen(from_network, "wb")
    thread = threading.Thread(
        target=denoise_stream,
        args=(model, source, sink),
        kwargs={"raw": RawFormat(*SIZE, "rgb24")},
        daemon=True,
    )
    thread.start()
    size = 3 * SIZE[0] * SIZE[1]
    video = frames(6)
    for t, frame in enumerate(video):
        os.write(ours, raw([frame]))
        if t >= delay:
            assert os.read(theirs, size) == raw([video[t - delay]])
    os.close(ours)
    thread.join(20)
    assert not thread.is_alive()
    sink.close()
    assert os.read(theirs, 2 * size) == raw(video[6 - delay :])
    os.close(theirs)
    source.close()


def test_a_stream_cut_short_gives_the_frames_before_and_tells() -> None:
    data = raw(frames(5))
    output = io.BytesIO()
    with pytest.raises(VideoError, match="ends inside frame 4"):
        denoise_stream(identity(), io.BytesIO(data[:-7]), output, raw=RawFormat(*SIZE, "rgb24"))
    assert output.getvalue() == data[: 4 * 3 * SIZE[0] * SIZE[1]]
    with pytest.raises(VideoError, match="holds no frames"):
        denoise_stream(identity(), io.BytesIO(b""), io.BytesIO(), raw=RawFormat(*SIZE, "rgb24"))


def test_a_reader_that_goes_away_ends_the_work() -> None:
    class Gone(io.BytesIO):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        denoise_stream(identity(), io.BytesIO(raw(frames(50))), Gone(), raw=RawFormat(*SIZE, "rgb24"))
    assert [t.name for t in threading.enumerate() if t.name.startswith("stan-")] == []


def test_places_that_are_no_pipes(tmp_path: Path) -> None:
    path = tmp_path / "a.y4m"
    with pytest.raises(VideoError, match="cannot be read: no such file"):
        denoise_stream(identity(), str(path), io.BytesIO())
    path.write_bytes(b"YUV4MPEG2 W16 H12 F25:1 C420\n")
    with pytest.raises(VideoError, match="is not a pipe"):
        denoise_stream(identity(), str(path), str(tmp_path / "out.y4m"))
    assert not (tmp_path / "out.y4m").exists()
