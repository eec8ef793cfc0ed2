"""Pixels filled in from what surrounds them, for many images at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcam.metrics.multigrid import Weights, harmonic

neighbors_weights = [
    *(((dy, dx), 1 / 12) for dy in (-1, 1) for dx in (-1, 1)),
    *((offset, 1 / 6) for offset in ((0, 1), (0, -1), (1, 0), (-1, 0))),
]


class NoisyLinearImputer:
    """Each missing pixel is the weighted mean of its eight neighbours, plus noise (ROAD, Rong et al., ICML 2022,
    arXiv:2202.00449): what is taken out leaves no edge that tells where it was.

    sum_n w_n (v_n - v_i) = 0 for a missing pixel i and its neighbours n inside the image

    noise       the standard deviation of what is added, in the unit of the image
    weighting   ((dy, dx), weight) for the eight neighbours, the same on opposite sides
    generator   where the noise is drawn; None is torch's generator on the CPU, an image after the other, so that with
                the same seed the numbers are those of pytorch-grad-cam
    The equations are solved within 1e-6 of the largest value (pytorch-grad-cam: a sparse LU decomposition for each
    image). An image of which nothing is known becomes 0.
    """

    def __init__(
        self,
        noise: float = 0.01,
        weighting: Sequence[tuple[tuple[int, int], float]] = tuple(neighbors_weights),
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.noise = noise
        self.weighting = weighting
        self.generator = generator
        self._weights = _weights(weighting)

    @property
    def settings(self) -> tuple[object, ...]:
        """What two imputers must share to work as one."""
        return self.noise, self._weights, self.generator

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """The filled image for one image `(k, H, W)` and its mask `(H, W)`, or for a batch of both; the type of img.

        mask   0 where a pixel is missing
        Raises ValueError if the sizes differ.
        """
        if img.ndim == 3 and mask.ndim == 2:
            return self(img.unsqueeze(0), mask.unsqueeze(0))[0]
        if img.ndim != 4 or mask.shape != (len(img), *img.shape[2:]):
            raise ValueError(
                f"mask must be (H, W) for img (k, H, W), or both in a batch, got {tuple(mask.shape)} for "
                f"{tuple(img.shape)}"
            )
        img, mask = img.detach(), mask.to(img.device)
        known = mask if mask.dtype == torch.bool else mask != 0
        filled = harmonic(img.float(), known, self._weights)
        if self.noise:
            filled.movedim(1, 3)[~known] += self.noise * self._draws(~known, img.shape[1])
        return torch.where(known.unsqueeze(1), img, filled.to(img.dtype))

    def _draws(self, missing: Tensor, channels: int) -> Tensor:
        """Standard normal numbers for the missing pixels of all images, `(pixels, channels)`."""
        counts = missing.flatten(1).sum(1).tolist()
        device = self.generator.device if self.generator else torch.device("cpu")
        counts = [sum(counts)] if self.generator else counts
        # pytorch-grad-cam draws (channels, pixels) for each image: the shape decides the order of the numbers.
        draws = [torch.randn(channels, n, generator=self.generator, device=device).t() for n in counts]
        return torch.cat(draws).to(missing.device)


def _weights(weighting: Sequence[tuple[tuple[int, int], float]]) -> Weights:
    """The three weights of the eight neighbours, or a ValueError."""
    given = {tuple(offset): float(weight) for offset, weight in weighting}
    beside, above, corner = given.get((0, 1), 0.0), given.get((1, 0), 0.0), given.get((1, 1), 0.0)
    wanted = {(dy, dx): corner if dy and dx else above if dy else beside for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    del wanted[0, 0]
    same = set(given) <= set(wanted) and all(given.get(offset, 0.0) == wanted[offset] for offset in wanted)
    if not same or beside <= 0 or above <= 0 or corner < 0:
        raise ValueError(
            "weighting must hold ((dy, dx), weight) for the eight neighbours, positive and the same on opposite "
            f"sides, the four corners alike, got {list(weighting)}"
        )
    return Weights(beside, above, corner)
