"""Maps of signals, volumes and videos: against grad-cam where it has them, against loops of the equations elsewhere."""

import warnings

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from fastcam import CAM, AblationCAM, FasterScoreCAM, GradCAM, GroupCAM, GuidedGradCAM, ReciproCAM, ScoreCAM, ops
from fastcam.layers import image_channel_dim
from fastcam.methods import METHODS
from fastcam.methods.masking import blur
from fastcam.spline import zoom_matrix


def zoomed(t, size):
    """scipy's zoom of maps `(B, *S)`, one at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = [ndimage.zoom(m, [n / s for n, s in zip(size, m.shape, strict=True)], order=3) for m in t.numpy()]
    return torch.from_numpy(np.stack(maps))


@pytest.mark.parametrize("n", range(1, 25))
def test_zoom_matrix_is_scipys_zoom_of_the_identity(n):
    for m in [*range(1, 30), 42, 44, 51, 64, 112, 113]:
        expected = ndimage.zoom(np.eye(n), (m / n, 1), order=3) if n > 1 else np.ones((m, 1))
        np.testing.assert_allclose(zoom_matrix(n, m), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [26, 42, 44, 51])
def test_the_last_plane_is_zero_where_scipys_is(m):
    assert not zoom_matrix(8, m)[-1].any() and zoom_matrix(8, m)[-2].any()
    assert zoom_matrix(8, 27)[-1, -1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("low", "size"), [((4, 7, 5), (16, 20, 33)), ((8, 2, 1), (26, 7, 5)), ((9, 9, 9), (4, 5, 1)), ((3, 3, 3),) * 2]
)
def test_resize_of_volumes(low, size):
    maps = torch.randn(2, *low)
    expected = zoomed(maps, size)
    torch.testing.assert_close(ops.resize(maps, size), expected, rtol=0, atol=1e-6)
    linear = F.interpolate(maps[:, None], size, mode="trilinear")[:, 0]
    torch.testing.assert_close(ops.resize(maps, size, "linear"), linear)
    assert low == size or (expected - linear).abs().max() > 0.05


@pytest.mark.parametrize("low", [(6,), (5, 7)])
def test_cubic_on_request_in_one_and_two_dimensions(low):
    maps, size = torch.randn(2, *low), [13, 20][: len(low)]
    torch.testing.assert_close(ops.resize(maps, size, "cubic"), zoomed(maps, size), rtol=0, atol=1e-6)
    finished = ops.finish([maps[:, None]], size, "cubic")
    expected = ops.min_max(zoomed(ops.min_max(maps.relu()), size).relu())
    torch.testing.assert_close(finished, expected, rtol=0, atol=1e-6)


def test_finish_of_volumes_clips_what_the_spline_undershoots():
    lows = [torch.randn(2, 3, 4, 5, 3), torch.randn(2, 1, 2, 3, 4)]
    resized = [zoomed(ops.min_max(low.sum(1).relu()), (8, 26, 7)) for low in lows]
    assert min(r.min() for r in resized) < -0.01
    expected = ops.min_max(torch.stack(resized).relu().mean(0))
    torch.testing.assert_close(ops.finish(lows, (8, 26, 7)), expected, rtol=0, atol=1e-6)


def network(rank, pool=True):
    """A small network for images `(B, 2, *S)` of that rank, whose batch norm has seen something."""
    torch.manual_seed(5)
    conv, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    head = [getattr(nn, f"AdaptiveAvgPool{rank}d")(1), nn.Flatten(), nn.Linear(8, 4)]
    tail = [] if pool else [conv(8, 8, 3, padding=1), nn.Tanh()]
    net = nn.Sequential(
        nn.Sequential(conv(2, 6, 3, 2, 1), norm(6), nn.ReLU()), nn.Sequential(conv(6, 8, 3, padding=1), norm(8)),
        nn.ReLU(), *tail, *head,
    )  # fmt: skip
    for m in net.modules():
        if isinstance(m, norm):
            m.momentum = None
    for p in net.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=2 / p[0].numel() ** 0.5)
    with torch.no_grad():
        net.train()(image(rank))
    return net.eval()


def image(rank, batch=2):
    """Blobs on noise."""
    torch.manual_seed(rank)
    x = torch.randn(batch, 2, *(7, 12, 10)[3 - rank :])
    x[..., 2:5] += 2
    return x


PEERS = ["GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "EigenCAM", "EigenGradCAM"]  # fmt: skip # noqa: E501


@pytest.mark.parametrize(("aug_smooth", "eigen_smooth"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("layers", [["2"], ["0", "2"]], ids=["one-layer", "two-layers"])
def test_volumes_are_those_of_grad_cam(method, layers, aug_smooth, eigen_smooth):
    net, x, options = network(3, pool=False), image(3), {"aug_smooth": aug_smooth, "eigen_smooth": eigen_smooth}
    for classes in ([1, 2], [0, 3], [2, 0], [3, 1]):  # others, where the ReLU leaves nothing
        their = getattr(pytorch_grad_cam, method)(net, [net[int(name)] for name in layers])
        expected = their(x, [ClassifierOutputTarget(c) for c in classes], **options)
        their.activations_and_grads.release()
        if np.ptp(expected, axis=(1, 2, 3)).min() > 0.1:
            break
    cls = next(c for c in METHODS.values() if c.__name__ == method)
    actual = cls(net, layers, sign="lapack")(x, classes, **options)
    assert np.ptp(expected, axis=(1, 2, 3)).min() > 0.1
    assert actual.dtype == np.float32 and actual.shape == (2, 7, 12, 10)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_linear_volumes_on_request():
    net, x = network(3), image(3)
    low = GradCAM(net, "1").attribute(x, 1, size=None)
    linear = GradCAM(net, "1", interpolation="linear")
    expected = ops.min_max(F.interpolate(low[:, None], x.shape[2:], mode="trilinear")[:, 0])
    torch.testing.assert_close(linear.attribute(x, 1), expected)
    assert (linear.attribute(x, 1) - GradCAM(net, "1").attribute(x, 1)).abs().max() > 0.01
    signed = GradCAM(net, "1").attribute(x, 1, normalize=False)
    low = GradCAM(net, "1").attribute(x, 1, normalize=False, size=None)
    torch.testing.assert_close(signed, zoomed(low, x.shape[2:]), rtol=0, atol=1e-6 * float(low.abs().max()) * 5)
    with pytest.raises(ValueError, match='interpolation must be None, "linear" or "cubic", got .area.'):
        AblationCAM(net, "1", interpolation="area")


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("randomcam", "sess") and "fullgrad" not in n])
def test_every_method_explains_signals_and_volumes(name, rank):
    net, x = network(rank), image(rank)
    options = {"k": 0.5} if name == "fem" else {}  # a signal of 5 positions has none two deviations off
    cam = METHODS[name](net, "2", interpolation="linear", **options)
    one, two = (cam.attribute(x, c, size=None, normalize=False) for c in ([1, 2], [3, 0]))
    assert one.shape == (2, *[(n + 1) // 2 for n in x.shape[2:]])
    assert one.abs().amax() > 1e-6 and (not cam.class_discriminative or not torch.equal(one, two))
    one = cam.attribute(x, [1, 2], size=None)
    maps = cam(x, [1, 2])
    assert maps.shape == (2, *x.shape[2:])
    resized = ops.min_max(ops.resize(one, x.shape[2:], "linear"))
    np.testing.assert_allclose(maps, resized.numpy(), rtol=0, atol=1e-5)
    many = cam.attribute(x, torch.tensor([[1, 3], [2, 0]]))
    assert many.shape == (2, 2, *x.shape[2:])
    torch.testing.assert_close(many[:, 0], torch.from_numpy(maps), rtol=0, atol=1e-5)
    mirrored = METHODS[name](network(rank), "2").attribute(x, [1, 2], aug_smooth=True)
    assert mirrored.shape == (2, *x.shape[2:]) and mirrored.isfinite().all()


@pytest.mark.parametrize("rank", [1, 3])
def test_aug_smooth_mirrors_width_or_height(rank):
    net, x = network(rank), image(rank)
    cam, dim = GradCAM(net, "1"), {1: 2, 3: 3}[rank]
    maps = [
        m.flip(dim - 1) if flip else m
        for flip in (False, True)
        for f in (0.9, 1, 1.1)
        for m in [cam.attribute((x.flip(dim) if flip else x) * f, 1)]
    ]
    torch.testing.assert_close(cam.attribute(x, 1, aug_smooth=True), torch.stack(maps).mean(0), rtol=0, atol=1e-6)
    assert (maps[0] - maps[3]).abs().max() > 0.01


@pytest.mark.parametrize("rank", [1, 3])
def test_score_cam_is_its_equation(rank):
    net, x = network(rank, pool=False), image(rank)
    A = net[:3](x).detach()
    mode = {1: "linear", 3: "trilinear"}[rank]
    u = F.interpolate(A, x.shape[2:], mode=mode, align_corners=True).flatten(2)
    u = (u - u.amin(2, keepdim=True)) / (u.amax(2, keepdim=True) - u.amin(2, keepdim=True) + 1e-8)
    masks = u.view(*A.shape[:2], *x.shape[2:])
    with torch.no_grad():
        y = torch.stack([net(x * masks[:, c, None])[:, 1] for c in range(8)], 1)
    expected = torch.einsum("bc,bc...->b...", y.softmax(1), A)
    actual = ScoreCAM(net, "2", batch_size=3).attribute(x, 1, normalize=False, size=None)
    assert expected.flatten(1).std(1).min() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_ablation_cam_is_its_equation(rank):
    for pool in (True, False):  # in closed form, and by running the tail
        net, x = network(rank, pool), image(rank)
        A = net[:3](x).detach()
        with torch.no_grad():
            y, weights = net(x)[:, 1], []
            for c in range(8):
                without = A.clone()
                without[:, c] = 0
                weights.append((y - net[3:](without)[:, 1]) / y)
        expected = torch.einsum("cb,bc...->b...", torch.stack(weights), A)
        actual = AblationCAM(net, "2").attribute(x, 1, normalize=False, size=None)
        assert expected.flatten(1).std(1).min() > 1e-3
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_recipro_cam_is_its_equation(rank, gaussian):
    net, x = network(rank, pool=False), image(rank, 1)
    A = net[:3](x).detach()
    S, scores = A.shape[2:], []
    for q in np.ndindex(*S):
        K = torch.zeros(S)
        for p in np.ndindex(*S):
            away = [abs(a - b) for a, b in zip(p, q, strict=True)]
            if max(away) <= int(gaussian):
                K[p] = 0.5**rank * 0.5 ** sum(away) if gaussian else 1
        scores.append(net[3:](A * K).softmax(1)[0, 1].detach())
    expected = torch.stack(scores).view(S)
    actual = ReciproCAM(net, "2", gaussian=gaussian).attribute(x, 1, normalize=False, size=None)[0]
    assert expected.std() > 1e-4
    torch.testing.assert_close(actual, expected - expected.min(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_cam_and_group_cam(rank):
    net, x = network(rank), image(rank)
    torch.testing.assert_close(CAM(net, "2").attribute(x, 1), GradCAM(net, "2").attribute(x, 1), rtol=0, atol=1e-5)
    group = GroupCAM(net, "2", groups=3)
    A = net[:3](x).detach()
    G = torch.autograd.grad(net[3:](A.requires_grad_())[:, 1].sum(), A)[0]
    seen = blur(x)
    expected = torch.zeros(2, *A.shape[2:])
    with torch.no_grad():
        for part in (A * G.flatten(2).mean(2).view(2, 8, *[1] * rank)).chunk(3, 1):
            M = part.sum(1).relu()
            M = torch.where(M.flatten(1).quantile(0.7, 1).view(2, *[1] * rank) < M, M, 0)
            u = F.interpolate(M[:, None], x.shape[2:], mode={1: "linear", 3: "trilinear"}[rank])
            low, high = (f(u.flatten(1), 1).view(2, 1, *[1] * rank) for f in (torch.amin, torch.amax))
            high = torch.where(high > low, high, torch.inf)  # a constant group counts nothing
            m = (u - low) / (high - low)
            gain = net(x * m + seen * (1 - m)).softmax(1)[:, 1] - net(seen).softmax(1)[:, 1]
            expected += gain.view(2, *[1] * rank) * ((M[:, None] - low) / (high - low))[:, 0]
    actual = group.attribute(x, 1, normalize=False, size=None)
    assert expected.flatten(1).std(1).min() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


class Video(nn.Module):
    """A 2-D network that sees the frames of `(B, T, 3, H, W)` as a batch, and their mean over time and space."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.Tanh())
        self.head = nn.Linear(8, 4)

    def rest(self, A, frames):
        return self.head((3 * self.tail(A).unflatten(0, (-1, frames)).mean((3, 4))).square().mean(1))

    def forward(self, x):
        return self.rest(self.body(self.stem(x.flatten(0, 1))), x.shape[1])


FRAMES = 5


def volume(t):
    """Frames `(B * T, C, h, w)` as `(B, C, T, h, w)`."""
    return t.unflatten(0, (-1, FRAMES)).movedim(1, 2)


@pytest.fixture
def video():
    torch.manual_seed(8)
    return torch.randn(2, FRAMES, 3, 12, 16)


def test_a_video_has_a_map_for_each_frame(video):
    net = Video()
    A = net.body(net.stem(video.flatten(0, 1))).detach().requires_grad_()
    G = volume(torch.autograd.grad(net.rest(A, FRAMES)[:, 1].sum(), A)[0])
    expected = (G.mean((2, 3, 4), keepdim=True) * volume(A)).sum(1).detach()
    cam = GradCAM(net, "body", volume)
    torch.testing.assert_close(cam.attribute(video, 1, size=None, normalize=False), expected)
    assert expected.std() > 1e-4
    maps = cam(video, 1)
    assert maps.shape == (2, FRAMES, 12, 16)
    finished = ops.min_max(zoomed(ops.min_max(expected.relu()), (FRAMES, 12, 16)).relu())
    np.testing.assert_allclose(maps, finished.numpy(), rtol=0, atol=1e-5)
    assert cam.attribute(video, 1, size=(3, 6, 9)).shape == (2, 3, 6, 9)
    assert GuidedGradCAM(net, "body", volume)(video, 1).shape == video.shape


@pytest.mark.parametrize("frames", [FRAMES, 1])
def test_ablation_and_recipro_cam_of_videos(frames):
    net, x = Video(), torch.randn(2, frames, 3, 12, 16)
    lay_out = lambda t: t.unflatten(0, (-1, frames)).movedim(1, 2)  # noqa: E731
    A = net.body(net.stem(x.flatten(0, 1))).detach()
    assert (A.unflatten(0, (2, frames)).flatten(1).amin(1) == 0).all()
    with torch.no_grad():
        y, weights = net(x)[:, 1], []
        for c in range(8):
            without = A.clone()
            without[:, c] = 0
            weights.append((y - net.rest(without, frames)[:, 1]) / y)
        expected = torch.einsum("cb,bcthw->bthw", torch.stack(weights), lay_out(A))
        kept = []
        for q in np.ndindex(frames, 6, 8):
            only = torch.zeros_like(A).unflatten(0, (2, frames))
            only[:, q[0], :, q[1], q[2]] = A.unflatten(0, (2, frames))[:, q[0], :, q[1], q[2]]
            kept.append(net.rest(only.flatten(0, 1), frames).softmax(1)[:, 1])
    kept = torch.stack(kept, 1)
    actual = AblationCAM(net, "body", lay_out, batch_size=5).attribute(x, 1, normalize=False, size=None)
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    actual = ReciproCAM(net, "body", lay_out).attribute(x, 1, normalize=False, size=None).flatten(1)
    assert kept.std() > 1e-6
    torch.testing.assert_close(actual, kept - kept.amin(1, keepdim=True), rtol=1e-3, atol=1e-7)


def test_score_and_group_cam_of_videos(video):
    net = Video()
    A = volume(net.body(net.stem(video.flatten(0, 1)))).detach()
    u = F.interpolate(A, (FRAMES, 12, 16), mode="trilinear", align_corners=True)
    u = u - u.amin((2, 3, 4), keepdim=True)
    masks = u / (u.amax((2, 3, 4), keepdim=True) + 1e-8)
    with torch.no_grad():
        y = torch.stack([net(video * masks[:, c, :, None])[:, 1] for c in range(8)], 1)
    expected = torch.einsum("bc,bcthw->bthw", y.softmax(1), A)
    actual = ScoreCAM(net, "body", volume).attribute(video, 1, normalize=False, size=None)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for cam in (GroupCAM(net, "body", volume, groups=2), FasterScoreCAM(net, "body", volume, channels=3)):
        assert cam(video, 1).shape == (2, FRAMES, 12, 16)


def test_aug_smooth_of_videos_mirrors_rows(video):
    cam = GradCAM(Video(), "body", volume)
    maps = [
        cam.attribute((video.flip(3) if flip else video) * f, 1).flip([2] * flip)
        for flip in (0, 1)
        for f in (0.9, 1, 1.1)
    ]
    smooth = cam.attribute(video, 1, aug_smooth=True)
    torch.testing.assert_close(smooth, torch.stack(maps).mean(0), rtol=0, atol=1e-5)


def test_which_dimension_of_a_video_has_the_channels():
    two, three = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)
    for net, shape, dim in [
        (two, (2, 5, 3, 8, 8), 2),
        (two, (2, 3, 5, 8, 8), 1),  # permuted by the model
        (two, (2, 3, 3, 8, 8), 2),
        (three, (2, 3, 5, 8, 8), 1),
        (three, (2, 5, 3, 8, 8), 2),
        (three, (2, 3, 3, 8, 8), 1),
        (two, (2, 3, 3, 8), 1),
        (nn.Linear(3, 3), (2, 5, 3, 8, 8), 1),
    ]:
        assert image_channel_dim(net, torch.empty(shape)) == dim, (net, shape)


def test_maps_of_another_rank_need_a_size(video):
    cam = GradCAM(Video(), "body", lambda t: volume(t).mean(2))
    assert cam.attribute(video, 1, size=(12, 16)).shape == (2, 12, 16)
    assert cam.attribute(video, 1, size=None).shape == (2, 6, 8)
    with pytest.raises(ValueError, match=r"size must have 2 values for maps \(2, 6, 8\), got \(5, 12, 16\).*size="):
        cam(video, 1)
    with pytest.raises(
        ValueError, match=r"aug_smooth mirrors maps of the image's 3 spatial dimensions, got \(2, 12, 16"
    ):
        cam.attribute(video, 1, size=(12, 16), aug_smooth=True)
    with pytest.raises(ValueError, match=r"5 frames of each video.*unflatten\(0, \(-1, 5\)\).movedim\(1, 2\)"):
        GradCAM(Video(), "body")(video, 1)
