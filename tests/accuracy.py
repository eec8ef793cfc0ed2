"""How close is close enough: measured, not guessed."""

import torch


def fenced(t, pad=4096):
    """A contiguous copy of `t` inside a field of NaN: a read outside it poisons the result."""
    field = torch.full((t.numel() + 2 * pad,), float("nan"), dtype=t.dtype, device=t.device)
    return field[pad : pad + t.numel()].view(t.shape).copy_(t)


def assert_as_accurate_as(torch_result, kernel_result, exact):
    """The kernel's worst error against float64 is within twice torch's own, plus one rounding."""
    torch_result, kernel_result, exact = (t.detach().cpu() for t in (torch_result, kernel_result, exact.double()))
    assert kernel_result.shape == exact.shape
    assert kernel_result.isfinite().all(), "kernel left non-finite values"
    rounding = torch.finfo(kernel_result.dtype).eps * exact.abs().max()
    allowed = 2 * ((torch_result.double() - exact).abs().max() + rounding)
    error = (kernel_result.double() - exact).abs().max()
    assert error <= allowed, f"kernel error {error:.2e} exceeds {allowed:.2e}"
