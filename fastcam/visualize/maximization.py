"""Images that excite a channel, a neuron, a class: many at once, each as if it were alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import BatchSize, check_batch_size, check_count, in_batches
from fastcam.images import check_contrast
from fastcam.record import unwrap
from fastcam.results import Images
from fastcam.visualize.ascent import Ascent, Frame, frame_of, joined, started
from fastcam.visualize.crops import Crop, crop_for
from fastcam.visualize.evaluation import Site, evaluator, objectives_of
from fastcam.visualize.objectives import Objective
from fastcam.visualize.parametrization import PARAMETRIZATIONS, parametrization_of
from fastcam.visualize.transforms import Moves, moves_of, named

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_SHORT = 128  # fewer steps than this leave no time for more than the climb
_FAR = 12.0  # rate times steps, at least: how far a short run gets, too
_GENTLE = 0.1  # of the rate, where an image that is given is to be seen in the end, too
_DROP = 1e-3  # of a score's size, below its beginning: more than rounding
_LOOKS = 4  # random pictures by which a crop is judged: what a maximum passes over in one it may take in another


class Maximized(Images):
    """Images that `maximize` made: `data` as the model takes them, with titles that say what each is for.

    target         the objectives' texts
    score          `(N,)`, each image's own objective for the image as it is
    transparency   `(N, H, W)`, the sum over the run of |d objective / d picture|, the largest of each image 1
    curve          `(N, steps)`, the objectives along the run, of the pictures as they were moved
    history        `(N, T, k, H, W)`, the images after the steps of `settings["history"]`; None without

    A `.pt` and a `.npz` hold them all.

    `plot` writes the score under each image; with `transparency=True` it shows only what mattered.
    """

    def __init__(
        self, data: Tensor, *, transparency: Tensor, curve: Tensor, history: Tensor | None, **about: Any
    ) -> None:
        super().__init__(data, **about)
        self.transparency, self.curve, self.history = transparency, curve, history

    def _tensors(self) -> dict[str, Tensor | None]:
        more = {"transparency": self.transparency, "curve": self.curve, "history": self.history}
        return super()._tensors() | more

    def _layout(self, columns: int = 8, size: Any = None, transparency: bool = False) -> Layout:
        layout = super()._layout(columns, size)
        return layout._replace(height=layout.height + 0.2 * layout.rows)

    def _draw(self, axes: np.ndarray, *_: Any, transparency: bool = False, **__: Any) -> None:
        super()._draw(axes)
        alphas = self.transparency.float().cpu().numpy()
        for ax, value, alpha in zip(axes.flat, self.score.tolist(), alphas, strict=False):  # type: ignore[union-attr]
            ax.set_xlabel(f"{value:.4g}", fontsize=8, labelpad=2)
            if transparency:
                ax.images[0].set_alpha(np.clip(alpha / max(float(np.percentile(alpha, 99)), 1e-12), 0, 1))


def maximize(
    model: nn.Module,
    objective: Any,
    *,
    channels: int | slice | Iterable[int] | None = None,
    size: int | tuple[int, int] = 224,
    steps: int = 256,
    variants: int = 1,
    mean: Any = None,
    std: Any = None,
    parametrization: str = "auto",
    transforms: Any = "auto",
    settle: float = 2 / 3,
    decorrelate: bool = True,
    images: Tensor | None = None,
    start: Tensor | None = None,
    canvas: str = "auto",
    learning_rate: float | None = None,
    redirect: int = 16,
    seed: int = 0,
    batch_size: int | str = "auto",
    history: Iterable[int] = (),
    progress: bool = False,
) -> Maximized:
    """Images that raise what a channel, a neuron, a class ... of the model answers (Olah et al. 2017).

    x* = argmax over x in the valid range of a(x), by Adam on the numbers that a parametrization makes pictures of

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    >>> made = maximize(model, ["0:1", "2:0-2", "2:5@center"], size=16, steps=8)
    >>> made.shape, made.target
    (torch.Size([5, 1, 16, 16]), ['0:1', '2:0', '2:1', '2:2', '2:5@6,6'])

    objective        "layer:3", "layer:0-15", "layer:*", "layer:3@y,x", "layer:3@center", "logit:3"; an `Objective`; a
                     callable, as targets of `GradCAM`; or a list of them, one an image. What a layer gives is taken
                     before what follows it: of a convolution before its ReLU
    channels         with a layer, a module or its name, as the objective: the channels of it, numbers or a slice;
                     negative ones count from the end
    size             of the images, in pixels or (H, W)
    variants         how many images of each objective, with different starts, side by side
    mean, std        per channel, of pictures in [0, 1]: x = (picture - mean) / std. None: pictures are the inputs
    parametrization  "fourier", "pixel", "maco"; "auto" is "pixel" for fewer than 128 steps, too few for more than a
                     steep climb, and otherwise "fourier"
    transforms       random moves of the pictures: True for jitter, scale and rotation, a `Moves` of other sizes, a
                     callable on pictures `(n, k, H, W)`, used in every step, None; "auto" is True from 128 steps on
    settle           the share of the steps, at the end, in which `Moves` move no more, in [0, 1]: it raises the score,
                     and gives fine patterns room; 0 for the calmest pictures. The rate falls to 0 in both parts; what
                     was "fourier" goes on by pixel there, at a fifth of the rate
    decorrelate      mix colours as they go together in photographs, or in `images`; not for pixels, nor for one channel
    images           your own model inputs `(M, k, H, W)`: the colours' covariance is theirs, and MACO's spectrum
    start            model inputs `(N, k, H, W)`, or one for all, to begin with instead of grey noise; by default at a
                     tenth of the rate of long runs, so that they can still be recognised
    canvas           "auto": where every objective is a neuron, images hold only what it sees and some room, if that is
                     less than `size`; `settings["origins"]` says where they lie. All have the size that the widest
                     needs, and a neuron among other objectives gets all of `size`. "full": never, nor with `start`
    learning_rate    Adam's at the start, falling to 0 as a cosine; for pixels in parts of the range. By default larger
                     in short runs
    redirect         steps at the start in which an image without a gradient gets one past ReLUs that are dead all over
    seed             of each objective's first variant; the next has the next seed. An image depends on its seed, its
                     objective, the settings and the canvas, which is that of the whole call, not on what is made beside
                     it: all objectives have the same start and moves. That holds in fp64, in fp32 but for rounding,
                     which grows over the steps. Sums with a diversity depend on the other variants
    batch_size       images at once; "auto" halves when memory is short
    history          steps, 1 to `steps`, after which images are kept
    progress         show a bar on stderr

    Gives a `Maximized`: `data (N, k, H, W)` in the valid range on the model's device, the images after the last step,
    not the best on the way; `score (N,)`.
    Raises ValueError for a layer, channel or place that is not there, for a model that begins with no Conv2d, for
    numbers out of range; TypeError for channels that are no whole numbers and a start that is no tensor of floats.
    Warns of objectives that never had a gradient, of scores that ended below where they began, and of a start of nearly
    no contrast. It works inside `torch.inference_mode()`, too.
    """
    with torch.inference_mode(False), torch.no_grad():
        net, steps, variants = unwrap(model), check_count("steps", steps), check_count("variants", variants)
        kept, seed, redirect = _kept(history, steps), _whole("seed", seed), _whole("redirect", redirect, least=0)
        _check_numbers(settle, learning_rate, batch_size)
        kind = _choice("parametrization", parametrization, "pixel" if steps < _SHORT else "fourier")
        moves = moves_of(transforms, steps >= _SHORT)
        frame = frame_of(net, size, mean, std)
        size = frame.shape[1:]
        sites, classes, goals = objectives_of(net, frame, objective, channels)
        texts = [o.text(lambda layer: sites[layer].name) for o in goals]
        _check_variants(goals, variants)
        first = None if start is None else started(start, frame, len(goals) * variants)
        if start is not None:
            check_contrast(start, mean, std, name="start", stacklevel=3)
        crop = _crop(canvas, net, goals, sites, frame) if start is None else None
        if crop is not None:
            goals, frame = crop.objectives, frame._replace(shape=(frame.shape[0], *crop.size))
        if learning_rate is None:
            usual = PARAMETRIZATIONS[kind].rate
            learning_rate = max(usual, _FAR / steps) if start is None else _GENTLE * usual
        ascent = Ascent(
            net=net,
            layers=list(sites),
            complete=classes is not None,
            frame=frame,
            parametrization=parametrization_of(kind, frame.shape, decorrelate, _own(images, frame)),
            moves=moves,
            steps=steps,
            moved=round(steps * (1 - settle)) if isinstance(moves, Moves) else steps,
            rate=learning_rate,
            redirect=redirect,
            history=kept,
        )
        goals = [o for o in goals for _ in range(variants)]
        texts = [text for text in texts for _ in range(variants)]
        found = _climbed(ascent, goals, texts, sites, variants, seed, first, batch_size, progress)
    about = {"size": size, "steps": steps, "parametrization": kind, "learning_rate": float(learning_rate)}
    about |= {"transforms": named(moves), "settle": float(settle), "seed": seed, "variants": variants}
    about |= {"redirect": redirect, "history": kept, "canvas": frame.shape[1:]}
    names = [site.name for site in sites.values()]
    return Maximized(
        target=texts,
        titles=texts,
        layer=names[0] if len(names) == 1 else names or None,
        settings={**about, "origins": None if crop is None else crop.origins},
        mean=mean,
        std=std,
        **found,
    )


def _whole(name: str, given: Any, least: int | None = None) -> int:
    if not isinstance(given, int | np.integer) or isinstance(given, bool) or least is not None and given < least:
        raise ValueError(
            f"{name} must be a whole number{'' if least is None else f' of {least} or more'}, got {given!r}"
        )
    return int(given)


def _kept(history: Any, steps: int) -> list[int]:
    """The steps, in order, after which images are kept."""
    given = history.tolist() if isinstance(history, Tensor | np.ndarray) else history
    given = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and 1 <= n <= steps for n in given):
        raise ValueError(f"history must be several whole numbers from 1 to {steps}, the steps, got {history!r}")
    return sorted({int(n) for n in given})


def _check_numbers(settle: Any, learning_rate: Any, batch_size: Any) -> None:
    if not isinstance(settle, Real) or isinstance(settle, bool) or not 0 <= float(settle) <= 1:
        raise ValueError(f"settle must be a number from 0 to 1, got {settle!r}")
    if learning_rate is not None and (not isinstance(learning_rate, Real) or not 0 < float(learning_rate) < math.inf):
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate!r}")
    if batch_size != "auto":
        check_batch_size(batch_size)


def _check_variants(goals: Sequence[Objective], variants: int) -> None:
    if variants == 1 and any(term.kind == "diversity" for o in goals for _, term in o.terms):
        raise ValueError("diversity compares the variants of an objective: pass variants=2 or more")


def _crop(
    canvas: str, net: nn.Module, goals: list[Objective], sites: dict[nn.Module, Site], frame: Frame
) -> Crop | None:
    if canvas not in ("auto", "full"):
        raise ValueError(f'canvas must be "auto" or "full", got {canvas!r}')
    if canvas == "full":
        return None
    noise = torch.rand(_LOOKS, *frame.shape, generator=torch.Generator().manual_seed(0))
    return crop_for(net, goals, sites, frame.inputs(noise.to(frame.low)))


def _choice(name: str, given: str, automatic: str) -> str:
    if given not in ("auto", *PARAMETRIZATIONS):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, PARAMETRIZATIONS))} or 'auto', got {given!r}")
    return automatic if given == "auto" else given


def _own(images: Any, frame: Frame) -> Tensor | None:
    """The user's own images as pictures."""
    if images is None:
        return None
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != frame.shape[0]:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be (M, {frame.shape[0]}, H, W), got {shape}")
    return frame.pictures(images)


def _climbed(
    ascent: Ascent,
    goals: Sequence[Objective],
    texts: Sequence[str],
    sites: dict[nn.Module, Site],
    variants: int,
    seed: int,
    start: Tensor | None,
    batch_size: int | str,
    progress: bool,
) -> dict[str, Any]:
    """All images, in batches that keep the variants of an objective together where they are compared."""
    from tqdm import tqdm

    together = variants if any(term.kind == "diversity" for o in goals for _, term in o.terms) else 1
    device = ascent.frame.low.device
    parts = []

    def run(first: int, last: int) -> Tensor:
        rows = slice(first * together, last * together)
        seeds = [seed + n % variants for n in range(len(goals))[rows]]
        values = evaluator(goals[rows], sites, variants, device)
        parts.append(ascent(values, seeds, None if start is None else start[rows]))
        return parts[-1]["data"]

    with tqdm(total=len(goals) * ascent.steps, desc="maximize", disable=not progress, leave=False) as bar:
        ascent = replace(ascent, tick=bar.update)
        in_batches(len(goals) // together, run, BatchSize(batch_size, device, steady=True))
    found = joined(parts)
    _warn(texts, found.pop("moved"), found.pop("began"), found["score"])
    most = found["transparency"].amax((1, 2), keepdim=True)
    transparency = found["transparency"] / most.clamp(min=torch.finfo(most.dtype).tiny)
    return {"history": None, **found, "transparency": transparency}


def _warn(texts: Sequence[str], moved: Tensor, first: Tensor, last: Tensor) -> None:
    """Of objectives that found no way, or one that led down."""
    if still := [text for text, able in zip(texts, moved.tolist(), strict=True) if not able]:
        warnings.warn(
            f"no step had a gradient for {', '.join(dict.fromkeys(still))}: nothing that was tried moves it; another "
            "seed or start may",
            stacklevel=4,
        )
    slack = max(_DROP, 4 * torch.finfo(last.dtype).eps) * (first.abs() + last.abs())
    fallen = (moved & (last < first - slack)).tolist()
    if below := [text for text, down in zip(texts, fallen, strict=True) if down]:
        warnings.warn(
            f"the score ended below where the run began for {', '.join(dict.fromkeys(below))}: try transforms=None or "
            'parametrization="pixel", or a lower learning_rate',
            stacklevel=4,
        )
