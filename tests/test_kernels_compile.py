"""Every kernel compiles for GPUs that are not here: without spills, and with the vector loads that its speed rests on.

TRITON_INTERPRET=0 pytest -m compile -n 0 tests/test_kernels_compile.py        (-sv prints registers and shared memory)
"""

import re

import pytest
import torch

pytest.importorskip("triton")

import triton

from benchmarks.offline import compile_only, global_bytes, registers_and_spills
from fastcam.kernels import channel_reduce, finish, masked_inputs, overlay, principal_component
from fastcam.ops import WEIGHTINGS

pytestmark = [pytest.mark.compile, pytest.mark.parametrize("arch", [80, 90, 100], ids="sm_{}".format)]


def tensor(*shape, dtype=torch.float32, layout="contiguous"):
    """Shape, strides and type alone, which is all that a compilation sees."""
    t = torch.empty(shape, dtype=dtype, device="meta")
    return t.to(memory_format=torch.channels_last) if layout == "channels_last" else t


def compiled(arch, launcher, *args):
    """The kernels that a launcher compiles, none of which may spill."""
    with compile_only(arch) as kernels:
        launcher(*args)
    for kernel in kernels:
        registers, spilled = registers_and_spills(kernel)
        resources = f"{registers:3} registers, {kernel.metadata.num_warps:2} warps, {kernel.metadata.shared:5} B shared"
        print(f"\nsm_{arch:<3} {kernel.metadata.name:15} {resources}", end="")
        assert spilled == 0, f"{kernel.metadata.name} spills {spilled} bytes on sm_{arch} ({registers} registers)"
    return kernels


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((8, 2048, 7, 7), "contiguous"), ((8, 1024, 14, 14), "channels_last"), ((2, 64, 65, 70), "contiguous")],
    ids=["7x7", "14x14-channels_last", "65x70"],
)
def test_channel_reduce(arch, shape, layout, weighting):
    A = tensor(*shape, layout=layout)
    kernels = compiled(arch, channel_reduce.channel_reduce, A, A, weighting)
    two_launches = shape[2] == 65 and weighting == "gradcam"
    assert len(kernels) == 1 + two_launches


@pytest.mark.parametrize("axis", [0, 2])
def test_channel_reduce_in_either_order_of_axes(arch, axis, monkeypatch):
    """Of which triton's version chooses one: the other is correct code, too."""
    monkeypatch.setattr(channel_reduce, "ACROSS", triton.language.constexpr(axis))
    for name in ("_row_sum", "_reduce_kernel"):  # nothing compiled before
        monkeypatch.setattr(channel_reduce, name, triton.jit(getattr(channel_reduce, name).fn))
    A = tensor(8, 1024, 14, 14)
    compiled(arch, channel_reduce.channel_reduce, A, A, "gradcam++")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "most"), [(7, 64), (14, 96)])
def test_rows_are_summed_with_few_shuffles_and_registers(arch, size, most, dtype):
    """A lane adds what it holds of a row first; the bandwidth of an H100 is lost with 190 shuffles or 128 registers."""
    A = tensor(8, 1024, size, size, dtype=dtype)
    for weighting, registers in (("gradcam", 64), ("xgradcam", 64), ("gradcam++", 80)):
        (kernel,) = compiled(arch, channel_reduce.channel_reduce, A, A, weighting)
        assert kernel.asm["ptx"].count("shfl.sync") <= most
        assert registers_and_spills(kernel)[0] <= 1.25 * registers


@pytest.mark.parametrize("weighting", ["gradcam++", "xgradcam"])
def test_rows_of_112_x_112_are_read_as_often_as_they_must(arch, weighting):
    A = tensor(2, 64, 112, 112)
    assert len(compiled(arch, channel_reduce.channel_reduce, A, A, weighting)) == (2 if weighting == "gradcam++" else 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "width"),
    [
        ((8, 1024, 14, 14), torch.float32, "contiguous", 16),
        ((8, 1024, 14, 14), torch.bfloat16, "contiguous", 8),  # rows of 392 bytes
        ((8, 768, 16, 16), torch.float32, "contiguous", 16),
        ((8, 768, 16, 16), torch.float16, "contiguous", 16),
        ((8, 256, 56, 56), torch.bfloat16, "contiguous", 16),
        ((8, 2048, 7, 7), torch.float32, "channels_last", 16),
        ((8, 2048, 7, 7), torch.bfloat16, "channels_last", 16),
        ((2, 64, 112, 112), torch.float16, "channels_last", 16),  # in two launches
    ],
)
def test_channel_reduce_loads_are_wide(arch, shape, dtype, layout, width):
    A = tensor(*shape, dtype=dtype, layout=layout)
    for kernel in compiled(arch, channel_reduce.channel_reduce, A, A, "gradcam++"):
        assert set(global_bytes(kernel)) == {width}


def test_weights_and_expanded_gradients(arch):
    A, weights = tensor(8, 512, 14, 14), tensor(8, 512)
    kernels = compiled(arch, channel_reduce.channel_sum, A, weights)
    kernels += compiled(arch, channel_reduce.channel_reduce, A, weights[..., None, None].expand_as(A), "gradcam")
    for kernel in kernels:
        assert global_bytes(kernel).count(16) >= 4  # A's; the weights, one a row, may come in narrow ones


@pytest.mark.parametrize(
    ("lows", "size"),
    [
        ([(8, 8, 7, 7)], (224, 224)),
        ([(1, 1, 14, 14)], (224, 224)),
        ([(2, 1, 65, 70)], (300, 501)),
        ([(8, 8, 7, 7), (8, 4, 14, 14), (8, 2, 28, 28)], (224, 224)),
        ([(8, 8, 128)], (4096,)),
    ],
    ids=["7x7", "14x14", "65x70", "three-layers", "line"],
)
def test_finish(arch, lows, size):
    (kernel,) = compiled(arch, finish.finish, [tensor(*shape) for shape in lows], size)
    assert max(global_bytes(kernel, "st")) == 16 or size[-1] % 4  # a row of odd size is not aligned
    order = "".join(step[0] for step in re.findall(r"ld\.global|st\.global|bar\.sync", kernel.asm["ptx"]))
    assert re.search("sb+l[bl]*s+$", order)  # no corner is read before all threads have written the scratch row


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((8, 2048, 7, 7), torch.float32, "contiguous"),
        ((8, 2048, 7, 7), torch.bfloat16, "channels_last"),
        ((8, 512, 8, 8), torch.float16, "contiguous"),
        ((8, 100, 5, 6), torch.float32, "contiguous"),
        ((1, 1, 2, 2), torch.float32, "contiguous"),
    ],
)
def test_principal_component(arch, shape, dtype, layout):
    X = tensor(*shape, dtype=dtype, layout=layout)
    assert len(compiled(arch, principal_component.principal_component, X)) == 2


def test_masked_inputs_of_lines(arch):
    x, masks, images = tensor(8, 2, 4096), tensor(64, 128), tensor(64, dtype=torch.int64)
    (kernel,) = compiled(arch, masked_inputs.masked_inputs, x, masks, images)
    assert set(global_bytes(kernel, "st")) == {16}


@pytest.mark.parametrize(
    ("low", "dtype", "layout", "baseline"),
    [
        (7, torch.float32, "contiguous", False),
        (14, torch.float32, "contiguous", True),
        (14, torch.float16, "contiguous", False),
        (7, torch.bfloat16, "contiguous", True),
        (14, torch.float32, "channels_last", False),
        (7, torch.float16, "channels_last", True),
        (7, torch.bfloat16, "channels_last", False),
    ],
)
def test_masked_inputs(arch, low, dtype, layout, baseline):
    x, images = tensor(8, 3, 224, 224, dtype=dtype, layout=layout), tensor(64, dtype=torch.int64)
    seen = tensor(8, 3, 224, 224) if baseline else None
    (kernel,) = compiled(arch, masked_inputs.masked_inputs, x, tensor(64, low, low), images, seen)
    assert set(global_bytes(kernel, "st")) == {16} and 16 in global_bytes(kernel)
    rows = re.findall(r"tt\.addptr %(?:masks|x|baseline|out)\S*, .*, (i\d+)", kernel.asm["ttir"])
    assert len(rows) >= 3 + baseline and set(rows) == {"i64"}  # offsets may pass 2^31


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "widths"),
    [
        ((64, 3, 224, 224), torch.float32, "contiguous", (16, 4)),  # of a lane's four pixels, and bytes
        ((64, 3, 224, 224), torch.float16, "contiguous", (8, 4)),
        ((64, 3, 224, 224), torch.float32, "channels_last", (16, 16)),
        ((64, 3, 224, 224), torch.bfloat16, "channels_last", (8, 8)),
        ((64, 3, 224, 224), torch.uint8, "channels_last", (4, 4)),
        ((64, 1, 224, 224), torch.float32, "contiguous", (16, 4)),
        ((1, 3, 4000, 3000), torch.uint8, "contiguous", (4, 4)),
    ],
)
def test_overlay(arch, shape, dtype, layout, widths):
    images, maps = tensor(*shape, dtype=dtype, layout=layout), tensor(shape[0], *shape[2:])
    kernels = compiled(arch, overlay.overlay, images, maps, tensor(256, 3, dtype=torch.uint8))
    assert len(kernels) == 2
    for kernel, width in zip(kernels, widths, strict=True):
        assert width in global_bytes(kernel)
        assert not re.search(r"\bfma\.", kernel.asm["ptx"])  # every product and sum is rounded as the definition's
        assert "div.full" not in kernel.asm["ptx"]
        rows = re.findall(r"tt\.addptr %(?:images|maps|pictures|largest)\S*, .*, (i\d+)", kernel.asm["ttir"])
        assert len(rows) >= 3 and set(rows) == {"i64"}  # offsets may pass 2^31
    assert set(global_bytes(kernels[1], "st")) == {4} and "div.rn.f32" in kernels[1].asm["ptx"]


def test_overlay_of_images_of_odd_sizes_and_strides(arch):
    cropped = tensor(2, 3, 225, 320)[..., :301]
    kernels = compiled(arch, overlay.overlay, cropped, tensor(2, 301, 225).mT, tensor(256, 3))
    assert len(kernels) == 2
