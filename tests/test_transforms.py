"""Random moves of pictures: one affine resampling for each picture, in proportion to its size."""

from __future__ import annotations

import math

import pytest
import torch

from fastcam.visualize.transforms import Moves, moves_of, named


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def test_draws_depend_on_the_picture_alone():
    moves = Moves()
    together = moves.draw(generators(3, 8), 5)
    assert together.shape == (5, 2, 4) and together.abs().max() <= 1
    torch.testing.assert_close(together[:, 1:], moves.draw(generators(8), 5), rtol=0, atol=0)
    assert not torch.equal(together[:, 0], together[:, 1])


def test_no_move_is_no_change():
    pictures = torch.rand(2, 3, 9, 12, dtype=torch.float64)
    moves = Moves()
    moved = moves(pictures, moves.matrices(torch.zeros(2, 4, dtype=torch.float64), 9, 12))
    torch.testing.assert_close(moved, pictures)


@pytest.mark.parametrize("size", [(28, 28), (20, 32)])
def test_jitter_shifts_by_a_share_of_each_side(size):
    height, width = size
    pictures = torch.rand(1, 1, height, width, dtype=torch.float64)
    moves = Moves(jitter=0.25, scale=0, rotate=0)
    drawn = torch.tensor([[1.0, -1.0, 0.3, 0.3]], dtype=torch.float64)  # down the picture, left of it
    moved = moves(pictures, moves.matrices(drawn, height, width))
    down, left = height // 4, width // 4
    expected = torch.full_like(pictures, 0.5)
    expected[:, :, : height - down, left:] = pictures[:, :, down:, : width - left]
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("size", [(33, 33), (25, 41)])
def test_turns_and_scales_as_a_rigid_body_would(size):
    """A bright spot is found where elementary geometry puts it, in pixels, also in an oblong picture."""
    height, width = size
    cy, cx = (height - 1) / 2, (width - 1) / 2
    ys, xs = torch.meshgrid(torch.arange(height) - cy, torch.arange(width) - cx, indexing="ij")
    spot = torch.exp(-((ys + 4) ** 2 + (xs - 6) ** 2).double() / 4)
    pictures = 0.5 + 0.5 * spot[None, None]
    moves = Moves(jitter=0, scale=0.25, rotate=90)
    for scale, turn in ((0.0, 1.0), (1.0, 0.0), (-1.0, -1.0)):
        matrices = moves.matrices(torch.tensor([[0.0, 0.0, scale, turn]], dtype=torch.float64), height, width)
        weights = moves(pictures, matrices)[0, 0] - 0.5
        y, x = (float((weights * n).sum() / weights.sum()) for n in (ys, xs))
        factor, angle = 1.25**scale, math.radians(90 * turn)
        # a pixel is taken from its place turned by the angle, so the spot turns the other way
        expected = (
            factor * (-4 * math.cos(angle) - 6 * math.sin(angle)),
            factor * (6 * math.cos(angle) - 4 * math.sin(angle)),
        )
        assert (y, x) == pytest.approx(expected, abs=0.05)


def test_beyond_the_edges_is_grey_and_the_shape_stays():
    pictures = torch.ones(3, 2, 17, 28)
    moves = Moves(jitter=0.5, scale=0.5, rotate=45)
    moved = moves(pictures, moves.matrices(moves.draw(generators(1, 2, 3), 1)[0], 17, 28))
    assert moved.shape == pictures.shape and moved.min() >= 0.5 and moved.max() <= 1 + 1e-6
    assert (moved == 0.5).any()


def test_what_a_user_may_ask_for():
    assert moves_of("auto", True) == moves_of(True, False) == Moves() and named(Moves()) == repr(Moves())
    assert moves_of("auto", False) is moves_of(False, True) is moves_of(None, True) is named(None) is None
    flip = torch.fliplr
    assert moves_of(flip, True) is flip and named(flip) == "fliplr" and named(torch.nn.Identity()) == "Identity"
    with pytest.raises(ValueError, match='transforms must be "auto", True, None, a Moves or a callable, got 0.1'):
        moves_of(0.1, True)
