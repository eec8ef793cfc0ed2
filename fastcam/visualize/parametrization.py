"""Pictures in [0, 1] as functions of numbers without bounds: by pixel, by frequency, by phase (MACO)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The correlation of red, green and blue over the pixels of scikit-learn's two sample photographs, to two digits.
_PHOTOGRAPHS = ((1.0, 0.88, 0.75), (0.88, 1.0, 0.95), (0.75, 0.95, 1.0))
_EDGE = 0.01  # a picture's value nearer to 0 or 1 is taken as this far from it, where its logit is needed
_START = 0.01  # the spread of what a run starts from


class Pixels:
    """Each value of the picture by itself, kept in [0, 1]; colours are not mixed.

    shape      (k, H, W) of a picture
    rate       the learning rate of a long run
    momentum   how long Adam remembers a gradient
    """

    rate, momentum = 0.05, 0.5

    def __init__(self, shape: tuple[int, int, int], colours: Tensor | None = None) -> None:
        self.shape, self.colours = shape, colours

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of one picture's numbers."""
        return self.shape

    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Numbers `(N, *size)` of pictures near grey, drawn by one generator a picture."""
        return torch.stack([0.5 + _START * torch.randn(self.size, generator=g) for g in generators])

    def pictures(self, numbers: Tensor) -> Tensor:
        """`(N, k, H, W)` in [0, 1]."""
        return numbers.clone()

    def numbers(self, pictures: Tensor) -> Tensor:
        """What gives these pictures, as nearly as the parametrization can."""
        return pictures.clone()

    def within(self, numbers: Tensor) -> Tensor:
        """The nearest numbers that give a picture."""
        return numbers.clamp(0, 1)

    def settled(self) -> Pixels | None:
        """What takes over where pictures are not moved any more; None: nothing."""
        return None


class _Calm(Pixels):
    """Pixels that leave of a picture what need not change."""

    rate, momentum = 0.03, 0.9


class Fourier(Pixels):
    """By frequency (Olah et al. 2017): p = sigmoid(C F^-1(s Z)), s = 1 / max(f, 1 / max(H, W))^decay.

    Z are the complex coefficients of the orthonormal real transform, C mixes the colours at a pixel. s is scaled to a
    mean square of 1 over the whole spectrum: a step of all numbers by d moves the values before the sigmoid by about d,
    whatever the size.

    colours   `(k, k)`, a root of the colours' covariance; None for none
    """

    rate, momentum = 0.15, 0.9

    def __init__(self, shape: tuple[int, int, int], colours: Tensor | None = None, decay: float = 1.0) -> None:
        super().__init__(shape, colours)
        self.scale = _falling(*shape[1:], decay)

    @property
    def size(self) -> tuple[int, ...]:
        k, H, W = self.shape
        return k, H, W // 2 + 1, 2

    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([_START * torch.randn(self.size, generator=g) for g in generators])

    def pictures(self, numbers: Tensor) -> Tensor:
        return torch.sigmoid(self._mixed(self._inverse(torch.view_as_complex(numbers) * self.scale.to(numbers))))

    def numbers(self, pictures: Tensor) -> Tensor:
        z = self._unmixed(torch.logit(pictures, _EDGE))
        return torch.view_as_real(torch.fft.rfft2(z, norm="ortho") / self.scale.to(z))

    def within(self, numbers: Tensor) -> Tensor:
        return numbers

    def settled(self) -> Pixels | None:
        """Pixels: a pattern of a few frequencies is one of a few numbers here, which would take long to grow."""
        return _Calm(self.shape)

    def _mixed(self, z: Tensor) -> Tensor:
        return z if self.colours is None else torch.einsum("ij,njhw->nihw", self.colours.to(z), z)

    def _unmixed(self, z: Tensor) -> Tensor:
        return z if self.colours is None else torch.einsum("ij,njhw->nihw", torch.linalg.inv(self.colours).to(z), z)

    def _inverse(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(spectrum, s=self.shape[1:], norm="ortho")


class Maco(Fourier):
    """The phase alone, the magnitude held (Fel et al. 2023, arXiv:2306.06805): p = sigmoid(C F^-1(m exp(i phi)) + b).

    The magnitude m and the mean b are those of the given pictures, in the same colours and before the same sigmoid;
    without any m falls as 1 / f, at a spread of 1, and b = 0.

    pictures   `(M, k, H, W)` in [0, 1]
    """

    def __init__(
        self, shape: tuple[int, int, int], colours: Tensor | None = None, pictures: Tensor | None = None
    ) -> None:
        super().__init__(shape, colours)
        magnitude = self.scale.expand(shape[0], *self.scale.shape).clone()
        self._mean = torch.zeros(shape[0], 1, 1)
        if pictures is not None:
            z = self._unmixed(torch.logit(pictures.float(), _EDGE))
            self._mean = z.mean((0, 2, 3))[:, None, None]
            magnitude = torch.fft.rfft2(z - self._mean, norm="ortho").abs().mean(0)
        magnitude[:, 0, 0] = 0  # the mean, which has no phase
        self.magnitude = magnitude

    @property
    def size(self) -> tuple[int, ...]:
        return super().size[:-1]

    def start(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.pi * (2 * torch.rand(self.size, generator=g) - 1) for g in generators])

    def pictures(self, numbers: Tensor) -> Tensor:
        z = self._inverse(torch.polar(self.magnitude.to(numbers).expand_as(numbers), numbers))
        return torch.sigmoid(self._mixed(z + self._mean.to(z)))

    def numbers(self, pictures: Tensor) -> Tensor:
        return torch.fft.rfft2(self._unmixed(torch.logit(pictures, _EDGE)), norm="ortho").angle()

    def settled(self) -> Pixels | None:
        return None  # the magnitude is held to the end


PARAMETRIZATIONS: dict[str, type[Pixels]] = {"pixel": Pixels, "fourier": Fourier, "maco": Maco}


def parametrization_of(
    kind: str, shape: tuple[int, int, int], decorrelate: bool, pictures: Tensor | None = None
) -> Pixels:
    """The parametrization by its name, for pictures `(k, H, W)`; own pictures `(M, k, h, w)` give colours, spectrum."""
    colours = colour_root(shape[0], pictures) if decorrelate else None
    if kind != "maco":
        return PARAMETRIZATIONS[kind](shape, colours)
    if pictures is not None and pictures.shape[2:] != shape[1:]:
        pictures = torch.nn.functional.interpolate(pictures, shape[1:], mode="bilinear", antialias=True)
    return Maco(shape, colours, pictures)


def colour_root(channels: int, pictures: Tensor | None = None) -> Tensor | None:
    """The symmetric root `(k, k)` of the colours' covariance, its mean variance scaled to 1; None for one channel.

    Of the pixels of pictures `(M, k, H, W)`, otherwise of three colours in photographs; None for others. Eigenvalues
    below a hundredth of the mean are raised to it, so that no colour is out of reach.
    """
    if channels == 1 or pictures is None and channels != 3:
        return None
    if pictures is None:
        covariance = torch.tensor(_PHOTOGRAPHS, dtype=torch.float64)
    else:
        covariance = torch.cov(pictures.double().movedim(1, 0).flatten(1).cpu())
    values, vectors = torch.linalg.eigh(covariance / covariance.trace().clamp(min=1e-12) * channels)
    return (vectors * values.clamp(min=0.01).sqrt()) @ vectors.T


def _falling(height: int, width: int, decay: float) -> Tensor:
    """`(H, W // 2 + 1)`, 1 / f^decay with f in cycles a pixel, its mean square 1 over the whole spectrum."""
    f = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    scale = f.clamp(min=1 / max(height, width)) ** -decay
    counted = torch.full((width // 2 + 1,), 2.0)  # the other half of the spectrum mirrors it
    counted[0] = 1
    if width % 2 == 0:
        counted[-1] = 1
    return scale / (counted * scale**2).sum().div(height * width).sqrt()
