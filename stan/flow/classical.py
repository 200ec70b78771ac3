"""Offset sources that estimate optical flow on the CPU, frame pair by frame pair (OpenCV, scikit-image)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stan.flow.base import FlowPair, OffsetSource, bordered, enlarged, grey
from stan.registry import sources
from stan.settings import Count, above, below, named, settings_of

Image: TypeAlias = np.ndarray
"""A grey frame, `(H, W)` uint8."""

Blur = Annotated[float, below(0, 100)]
Downscale = Literal[1, 2, 4]
Threads = Count | None
Positive = Annotated[float, above(0)]


@sources.register("zero")
class ZeroFlow(OffsetSource):
    """No displacement: the search is centred on the query's own position (a plain non-local search)."""

    pairwise = True

    def estimate(self, video: Tensor) -> FlowPair:
        """Zeros of the right shape."""
        b, t, _, h, w = video.shape
        zeros = torch.zeros(b, t, 2, h, w, device=video.device)
        return FlowPair(zeros, zeros.clone())


class PairwiseFlow(OffsetSource):
    """Base of the estimators that take two grey frames. The result carries no gradient.

    Frames are clipped to [0, 1], turned grey (BT.601 luma, which also averages the noise of the channels),
    reduced by area average, blurred against noise, and rounded to 8 bit, once each. Frames smaller than `smallest`
    pixels are enlarged by repeating their border. Pairs in both directions are shared out over threads (the
    libraries release the interpreter's lock). Flow of reduced frames is enlarged bilinearly.

    Args:
        blur: standard deviation of a Gaussian blur before the estimation, in pixels of the size at which the flow is
            estimated; 0 is none.
        downscale: estimate at this part of the size: 2 is a quarter of the pixels, takes less than half the time, and
            costs accuracy.
        threads: worker threads; null takes as many as torch uses.
        settings: further settings of the subclass, which may leave out the three above.
    """

    pairwise = True
    torch_only = False
    smallest: ClassVar[int] = 16

    def __init__(
        self, *, blur: Blur = 0.0, downscale: Downscale = 1, threads: Threads = None, **settings: object
    ) -> None:
        own: Any = type(self)
        common = {"blur": blur, "downscale": downscale, "threads": threads}
        super().__init__(**{name: common[name] for name in common if name in settings_of(own)}, **settings)
        self.blur = blur
        self.downscale = downscale
        self.threads = threads

    def pair(self, first: Image, second: Image) -> np.ndarray:
        """Flow `(H, W, 2)` float32, (x, y), from `first` to `second`; called from several threads at once."""
        raise TypeError(f"{type(self).__name__} is a pairwise offset source without a pair() method")

    def grey(self, video: Tensor) -> np.ndarray:
        """The frames as the estimator sees them: `(B, T, H', W')` uint8, H' and W' at least `smallest`."""
        seen = [self._seen(frame) for frame in video.flatten(0, 1)]  # one by one they stay in the cache
        return np.stack(seen).reshape(*video.shape[:2], *seen[0].shape)  # (B, T, H', W')

    def _seen(self, frame: Tensor) -> Image:
        """A frame `(3, H, W)` as the estimator sees it."""
        luma = bordered(grey(frame[None, None]), self.downscale, self.smallest * self.downscale)
        if self.downscale > 1:
            luma = F.avg_pool2d(luma, self.downscale)
        pixels = luma[0, 0].mul_(255).cpu().numpy()
        if self.blur > 0:
            pixels = cv2.GaussianBlur(pixels, (0, 0), self.blur, borderType=cv2.BORDER_REFLECT_101)
        return np.rint(pixels, out=pixels).astype(np.uint8)

    @torch.no_grad()
    def estimate(self, video: Tensor) -> FlowPair:
        """Estimate all neighbouring pairs in both directions."""
        b, t, _, h, w = video.shape
        frames = self.grey(video)
        flow = torch.zeros(2, b, t, 2, *frames.shape[2:])
        planes = flow.numpy()  # the same memory
        jobs = [(0, i, s, s + 1) for i in range(b) for s in range(t - 1)]
        jobs += [(1, i, s, s - 1) for i in range(b) for s in range(1, t)]

        def run(job: tuple[int, int, int, int]) -> None:
            direction, clip, source, target = job
            estimated = self.pair(frames[clip, source], frames[clip, target])  # (H', W', 2)
            planes[direction, clip, source] = estimated.transpose(2, 0, 1)

        threads = min(self.threads or torch.get_num_threads(), len(jobs))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, jobs))
        flow.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        flow = enlarged(flow.to(video.device), self.downscale)[..., :h, :w].contiguous()
        return FlowPair(flow[0], flow[1])  # each (B, T, 2, H, W)


@sources.register("dis")
class DISFlow(PairwiseFlow):
    """Dense inverse search (Kroeger et al., ECCV 2016) of OpenCV: fast, the default for estimated flow.

    Args:
        preset: OpenCV's, by rising cost, and smooth, for frames that were noisy: fast, but down to half resolution
            like medium, and with a stronger smoothness term.
    """

    def __init__(
        self,
        *,
        preset: Literal["ultrafast", "fast", "medium", "smooth"] = "medium",
        blur: Blur = 0.7,
        downscale: Downscale = 1,
        threads: Threads = None,
    ) -> None:
        super().__init__(**named(locals()))
        self.preset: str = preset

    @property
    def version(self) -> str:
        """OpenCV's version."""
        return f"opencv {cv2.__version__}"

    def pair(self, first: Image, second: Image) -> np.ndarray:
        """DIS flow of one pair; the estimator object holds buffers, so each call makes its own."""
        estimator = self._estimator()
        patch = estimator.getPatchSize()
        sides = first.shape
        # The coarsest pyramid level as OpenCV computes it. Where it is finer than the preset's finest level,
        # OpenCV chooses levels from the width alone and, for a wide and low frame, reads out of bounds.
        coarsest = min(int(math.log2(max(sides) / (4 * patch)) + 0.5), int(math.log2(min(sides) / patch)))
        estimator.setFinestScale(max(0, min(estimator.getFinestScale(), coarsest)))
        # OpenCV's stubs ask for an array where its code takes none; one given would be the initial guess.
        return estimator.calc(first, second, None)  # type: ignore[call-overload]

    def _estimator(self) -> cv2.DISOpticalFlow:
        if self.preset != "smooth":
            return cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{self.preset.upper()}"))
        # What cleaning left of the noise moves a flow that follows the pictures closely. So smoothness counts three
        # times as much as by default, and brightness twice as much beside its gradient.
        estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        estimator.setFinestScale(1)
        estimator.setVariationalRefinementAlpha(60.0)
        estimator.setVariationalRefinementDelta(10.0)
        return estimator


@sources.register("farneback")
class FarnebackFlow(PairwiseFlow):
    """Polynomial expansion (Farnebäck, SCIA 2003) of OpenCV.

    Args:
        levels: pyramid levels, each half the size of the one before.
        window: side of the averaging window in pixels; larger is more robust to noise and blurs motion
            borders.
        iterations: iterations a level.
        neighbourhood: side of the polynomial's neighbourhood in pixels.
    """

    def __init__(
        self,
        *,
        levels: Count = 5,
        window: Count = 15,
        iterations: Count = 3,
        neighbourhood: Literal[5, 7] = 7,
        blur: Blur = 0.0,
        downscale: Downscale = 1,
        threads: Threads = None,
    ) -> None:
        super().__init__(**named(locals()))

    version = DISFlow.version  # OpenCV's as well

    def pair(self, first: Image, second: Image) -> np.ndarray:
        """Farnebäck flow of one pair; the polynomial's Gaussian is OpenCV's recommendation for its size."""
        s = self.settings
        return cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
            first,
            second,
            None,
            pyr_scale=0.5,
            levels=s["levels"],
            winsize=s["window"],
            iterations=s["iterations"],
            poly_n=s["neighbourhood"],
            poly_sigma=1.1 if s["neighbourhood"] == 5 else 1.5,
            flags=0,
        )


@sources.register("tvl1")
class TVL1Flow(PairwiseFlow):
    """TV-L1 (Zach et al., DAGM 2007) of scikit-image: the paper's choice; accurate and slow.

    Args:
        attachment: weight of the data term; smaller is smoother.
        tightness: how closely the two sub-problems are tied.
        warps: warps a pyramid level.
        iterations: fixed-point iterations a warp.
        tolerance: stop when the squared change of the flow falls below this.
    """

    def __init__(
        self,
        *,
        attachment: Positive = 15.0,
        tightness: Positive = 0.3,
        warps: Count = 5,
        iterations: Count = 10,
        tolerance: Positive = 1e-4,
        blur: Blur = 0.0,
        downscale: Downscale = 1,
        threads: Threads = None,
    ) -> None:
        super().__init__(**named(locals()))

    @property
    def version(self) -> str:
        """scikit-image's version."""
        return f"scikit-image {version('scikit-image')}"

    def pair(self, first: Image, second: Image) -> np.ndarray:
        """TV-L1 flow of one pair; scikit-image gives (row, column), this gives (x, y)."""
        from skimage.registration import optical_flow_tvl1  # here: it loads SciPy, which takes a second

        s = self.settings
        rows, columns = optical_flow_tvl1(
            first.astype(np.float32) / 255,
            second.astype(np.float32) / 255,
            attachment=s["attachment"],
            tightness=s["tightness"],
            num_warp=s["warps"],
            num_iter=s["iterations"],
            tol=s["tolerance"],
            dtype=np.float32,
        )
        return np.stack([columns, rows], axis=-1)
