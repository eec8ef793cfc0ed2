"""Images that excite a channel, a neuron, a class: many at once, each as if it were alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.batches import BatchSize, check_count, in_batches
from fastcam.channels import channels_last
from fastcam.inputs import Inputs
from fastcam.layers import layer_name
from fastcam.record import unwrap
from fastcam.results import Images
from fastcam.targets import find_logits
from fastcam.visualize.ascent import Ascent, Frame, frame_of, joined
from fastcam.visualize.crops import Crop, crop_for
from fastcam.visualize.evaluation import Site, bound, evaluator, resolved
from fastcam.visualize.forward import differentiable
from fastcam.visualize.objectives import Objective, listed
from fastcam.visualize.parametrization import PARAMETRIZATIONS, Maco, Pixels, colour_root
from fastcam.visualize.transforms import Moves

if TYPE_CHECKING:
    from fastcam.figures.canvas import Layout

_SHORT = 128  # fewer steps than this leave no time for more than the climb
_FAR = 12.0  # rate times steps, at least: how far a short run gets, too
_GREY = 4  # random pictures by which a crop is judged


class Maximized(Images):
    """Images that `maximize` made: `data` as the model takes them, with titles that say what each is for.

    target         the objectives' texts
    score          `(N,)`, each image's own objective for the image as it is
    transparency   `(N, H, W)`, the sum over the run of |d objective / d picture|, the largest of each image 1
    curve          `(N, steps)`, the objectives along the run, of the pictures as they were moved
    history        `(N, T, k, H, W)`, the images after the steps that were asked for; None without

    `plot` writes the score under each image; with `transparency=True` it shows only what mattered.
    """

    def __init__(
        self, data: Tensor, *, transparency: Tensor, curve: Tensor, history: Tensor | None, **about: Any
    ) -> None:
        super().__init__(data, **about)
        self.transparency, self.curve, self.history = transparency, curve, history

    def _layout(self, columns: int = 8, size: float = 1.6, transparency: bool = False) -> Layout:
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
    channels: int | Iterable[int] | None = None,
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
    channels         with a layer, a module or its name, as the objective: the channels of it
    size             of the images, in pixels or (H, W)
    variants         how many images of each objective, with different starts, side by side
    mean, std        per channel, of pictures in [0, 1]: x = (picture - mean) / std. None: pictures are the inputs
    parametrization  "fourier", "pixel", "maco"; "auto" is "pixel" for fewer than 128 steps, too few for more than a
                     steep climb, and otherwise "fourier"
    transforms       random moves of the pictures: True for jitter, scale and rotation, a `Moves` of other sizes, a
                     callable on pictures `(n, k, H, W)`, None; "auto" is True from 128 steps on
    settle           the share of the steps, at the end, in which pictures are not moved any more, in [0, 1]: it raises
                     the score, and gives room to fine patterns; 0 for calm pictures. The rate falls to 0 in both parts
    decorrelate      mix colours as they go together in photographs, or in `images`; not for pixels, nor for one channel
    images           your own model inputs `(M, k, H, W)`: the colours' covariance is theirs, and MACO's spectrum
    start            model inputs `(N, k, H, W)`, or one for all, to begin with instead of grey noise
    canvas           "auto": where every objective is a neuron, images hold only what it sees and some room, if that is
                     less than `size`; `settings["origins"]` says where they lie. All have the size that the widest
                     needs. "full": never, nor with `start`
    learning_rate    Adam's at the start, falling to 0 as a cosine; for pixels in parts of the range. By default larger
                     in short runs
    redirect         steps at the start in which an image without a gradient gets one past ReLUs that are dead all over
    seed             of each objective's first variant; the next has the next seed. An image depends on its seed, its
                     objective, its size and the settings, not on what else is made: all objectives have the same start
                     and moves. Sums with a diversity depend on the other variants
    batch_size       images at once; "auto" halves when memory is short
    history          steps, 1 to `steps`, after which images are kept
    progress         show a bar on stderr

    Gives a `Maximized`: `data (N, k, H, W)` in the valid range on the model's device, the images after the last step,
    not the best on the way; `score (N,)`.
    Raises ValueError for a layer, channel or place that is not there, for a model that begins with no Conv2d; warns of
    objectives that never had a gradient.
    """
    net, steps = unwrap(model), check_count("steps", steps)
    frame = frame_of(net, size, mean, std)
    sites, classes, goals = _bound(net, frame, objective, channels)
    texts = [o.text(lambda layer: sites[layer].name) for o in goals]
    _check_variants(goals, check_count("variants", variants))
    crop = _crop(canvas, net, goals, sites, frame) if start is None else None
    if crop is not None:
        goals, frame = crop.objectives, frame._replace(shape=(frame.shape[0], *crop.size))
    kind = _choice("parametrization", parametrization, "pixel" if steps < _SHORT else "fourier")
    rate = max(PARAMETRIZATIONS[kind].rate, _FAR / steps) if learning_rate is None else learning_rate
    moves = _moves(transforms, steps)
    ascent = Ascent(
        net=net,
        layers=list(sites),
        complete=classes is not None,
        frame=frame,
        parametrization=_parametrization(kind, frame, decorrelate, images),
        moves=moves,
        steps=steps,
        moved=round(steps * (1 - settle)) if isinstance(moves, Moves) else 0,
        rate=rate,
        redirect=redirect,
        history=sorted(set(history)),
    )
    goals = [o for o in goals for _ in range(variants)]
    texts = [text for text in texts for _ in range(variants)]
    first = None if start is None else _started(start, frame, len(goals))
    found = _climbed(ascent, goals, texts, sites, variants, seed, first, batch_size, progress)
    about = {"size": size, "steps": steps, "parametrization": kind, "learning_rate": rate, "transforms": ascent.moves}
    about |= {"seed": seed, "variants": variants, "settle": settle, "redirect": redirect, "canvas": frame.shape[1:]}
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


def _bound(
    net: nn.Module, frame: Frame, given: Any, channels: Any
) -> tuple[dict[nn.Module, Site], int | None, list[Objective]]:
    """The layers that objectives speak of, the number of classes if they speak of the output, and the objectives."""

    def width(layer: str) -> int:
        if layer == "logit":
            return _look(net, frame, [], complete=True)[1] or 0
        module = resolved(net, layer)
        return _look(net, frame, [module], complete=False)[0][module].shape[0]

    goals = listed(given, channels, width)
    if not goals:
        raise ValueError("there is no objective: the list of them, or of channels, is empty")
    terms = [term for o in goals for _, term in o.terms]
    layers = list(dict.fromkeys(resolved(net, t.layer) for t in terms if t.layer is not None))
    sites, classes = _look(net, frame, layers, complete=any(t.layer is None for t in terms))
    return sites, classes, [bound(o, net, sites, classes) for o in goals]


def _look(
    net: nn.Module, frame: Frame, layers: Sequence[nn.Module], complete: bool
) -> tuple[dict[nn.Module, Site], int | None]:
    """What one grey picture finds at the layers, and how many classes there are; None for an incomplete run."""
    grey = frame.inputs(torch.full((1, *frame.shape), 0.5, dtype=frame.low.dtype, device=frame.low.device))
    with differentiable(net, layers, complete=complete) as run, torch.no_grad():
        seen = run(grey)
    sites = {}
    for layer in layers:
        shape, name = seen.activations[layer].shape, layer_name(net, layer)
        if len(shape) < 2 or shape[0] != 1:
            raise ValueError(f"{name} gives {tuple(shape)} for one image, not (1, C) or (1, C, h, w)")
        last = len(shape) == 3 or len(shape) == 4 and channels_last(net, layer, Inputs(grey), shape)
        sites[layer] = Site(layer, name, tuple((*shape[-1:], *shape[1:-1]) if last else shape[1:]), last)
    logits = find_logits(seen.output)
    return sites, None if not complete else logits.shape[-1] if logits is not None else 0


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
    noise = torch.rand(_GREY, *frame.shape, generator=torch.Generator().manual_seed(0))
    return crop_for(net, goals, sites, frame.inputs(noise.to(frame.low)))


def _choice(name: str, given: str, automatic: str) -> str:
    if given not in ("auto", *PARAMETRIZATIONS):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, PARAMETRIZATIONS))} or 'auto', got {given!r}")
    return automatic if given == "auto" else given


def _parametrization(kind: str, frame: Frame, decorrelate: bool, images: Tensor | None) -> Pixels:
    own = None
    if images is not None:
        if images.ndim != 4 or images.shape[1] != frame.shape[0]:
            raise ValueError(f"images must be (M, {frame.shape[0]}, H, W), got {tuple(images.shape)}")
        own = frame.pictures(images)
    colours = colour_root(frame.shape[0], own) if decorrelate else None
    if kind != "maco":
        return PARAMETRIZATIONS[kind](frame.shape, colours)
    if own is not None and own.shape[2:] != frame.shape[1:]:
        own = nn.functional.interpolate(own, frame.shape[1:], mode="bilinear", antialias=True)
    return Maco(frame.shape, colours, own)


def _moves(given: Any, steps: int) -> Moves | Callable[[Tensor], Tensor] | None:
    if not (given is None or given in ("auto", True, False) or callable(given)):
        raise ValueError(f'transforms must be "auto", True, None, a Moves or a callable, got {given!r}')
    wanted = steps >= _SHORT if given == "auto" else given
    return Moves() if wanted is True else wanted or None


def _started(start: Tensor, frame: Frame, count: int) -> Tensor:
    """Pictures for each image to begin with."""
    if start.shape[1:] != frame.shape or len(start) not in (1, count):
        raise ValueError(f"start must be ({count}, {', '.join(map(str, frame.shape))}), got {tuple(start.shape)}")
    return frame.pictures(start).expand(count, -1, -1, -1)


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
    if still := [text for text, moved in zip(texts, found.pop("moved").tolist(), strict=True) if not moved]:
        warnings.warn(
            f"no step had a gradient for {', '.join(dict.fromkeys(still))}: nothing that was tried moves it; another "
            "seed or start may",
            stacklevel=3,
        )
    most = found["transparency"].amax((1, 2), keepdim=True)
    transparency = found["transparency"] / most.clamp(min=torch.finfo(most.dtype).tiny)
    return {"history": None, **found, "transparency": transparency}
