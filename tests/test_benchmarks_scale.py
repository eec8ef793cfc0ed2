"""The benchmark's part on scale: straight lines, the sweeps, and checks that see a wrong output."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import lines  # noqa: E402

sys.path.remove(str(ROOT))


def test_a_line_is_found_and_called_straight():
    line = lines.fit([1, 2, 8, 32], [5.0, 7.0, 19.0, 67.0])
    assert (line.slope, line.intercept) == pytest.approx((2, 3)) and line.worst < 1e-9 and line.straight
    assert line.at(10) == pytest.approx(23)
    flat = lines.fit([4096, 65536, 200704], [7.0, 7.0, 7.0])
    assert flat.straight and flat.slope == pytest.approx(0, abs=1e-12) and flat.intercept == pytest.approx(7)


def test_distances_count_relative_to_the_value():
    xs, ys = [1, 10, 100, 1000], [2.0, 11.0, 101.0, 1101.0]  # the last 10 % above 1 + x
    line = lines.fit(xs, ys)
    assert line.slope == pytest.approx(1.05, abs=0.05) and abs(line.at(1) / 2 - 1) < 0.05
    assert line.worst == pytest.approx(max(abs(line.at(x) / y - 1) for x, y in zip(xs, ys, strict=True)))


@pytest.mark.parametrize("power", [0.5, 1.5, 2])
def test_a_curve_is_not_straight(power):
    xs = [1, 2, 4, 8, 16, 32]
    line = lines.fit(xs, [x**power for x in xs])
    assert not line.straight and line.worst > lines.TOLERANCE


def test_a_jump_at_the_end_is_not_straight():
    xs = [1, 2, 4, 8, 16, 32]
    assert not lines.fit(xs, [*xs[:-1], 48.0]).straight


def test_quartiles_excuse_what_they_reach():
    xs, ys = [1, 2, 3, 4], [1.0, 2.0, 4.5, 4.0]
    assert not lines.fit(xs, ys).straight
    wide, narrow = [[0.7 * y, 1.3 * y] for y in ys], [[0.99 * y, 1.01 * y] for y in ys]
    assert lines.fit(xs, ys, wide).straight and not lines.fit(xs, ys, narrow).straight
    assert lines.fit(xs, ys, wide).worst == lines.fit(xs, ys).worst
    assert lines.fit(xs, ys, tolerance=0.5).straight


@pytest.mark.parametrize(
    ("xs", "ys", "told"),
    [([1, 2], [1, 2], "3 different x"), ([1, 1, 2], [1, 2, 3], "3 different x"), ([1, 2, 3], [1, 0, 2], "positive")],
)
def test_what_gives_no_line(xs, ys, told):
    with pytest.raises(ValueError, match=told):
        lines.fit(xs, ys)


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="do not go together"):
        lines.fit([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="do not go together"):
        lines.fit([1, 2, 3], [1, 2, 3], [[1, 2]])
