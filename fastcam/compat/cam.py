"""`python -m fastcam.compat.cam`: the flags and files of pytorch-grad-cam's own cam.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastcam.compat import cams, combined
from fastcam.compat.guided import GuidedBackpropReLUModel
from fastcam.figures.overlays import deprocess_image, show_cam_on_image
from fastcam.images import IMAGENET_MEAN, IMAGENET_STD, load_image, preprocess_image, save_jpeg
from fastcam.layers import find_layers
from fastcam.models import load_model

METHODS = {
    **{"gradcam": cams.GradCAM, "fem": cams.FEM, "hirescam": cams.HiResCAM, "gradcam++": cams.GradCAMPlusPlus},
    **{"scorecam": cams.ScoreCAM, "xgradcam": cams.XGradCAM, "ablationcam": cams.AblationCAM},
    **{"eigencam": cams.EigenCAM, "eigengradcam": cams.EigenGradCAM, "layercam": cams.LayerCAM},
    **{"fullgrad": cams.FullGrad, "gradcamelementwise": cams.GradCAMElementWise, "kpcacam": cams.KPCA_CAM},
    **{"shapleycam": cams.ShapleyCAM, "finercam": combined.FinerCAM, "segeigencam": cams.SegEigenCAM},
    **{"randomcam": cams.RandomCAM, "refinecam": combined.RefineCAM, "sess": combined.SESS},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the overlay, guided backpropagation and their product for one image; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        model = load_model(options.model, options.weights or _cached(options.model)).model.to(options.device)
        layers = find_layers(model, options.layer)
        rgb = load_image(options.image_path).movedim(0, -1).numpy()
    except (ImportError, OSError, ValueError) as error:
        print(f"fastcam: error: {error}", file=sys.stderr)
        return 2
    x = preprocess_image(rgb, IMAGENET_MEAN, IMAGENET_STD).to(options.device)
    pictures = explained(model, layers, x, rgb, options)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        save_jpeg(picture, options.output_dir / f"{options.method}_{name}.jpg")
    return 0


def explained(
    model: nn.Module, layers: Sequence[nn.Module], x: torch.Tensor, rgb: np.ndarray, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """The pictures of one image, uint8 RGB `(H, W, 3)`: cam, gb, cam_gb."""
    with METHODS[options.method](model, layers) as cam:
        cam.batch_size = 32
        mask = cam(x, None, aug_smooth=options.aug_smooth, eigen_smooth=options.eigen_smooth)[0]
    gradient = GuidedBackpropReLUModel(model)(x)
    return {
        "cam": show_cam_on_image(rgb, mask, use_rgb=True),
        "gb": deprocess_image(gradient),
        "cam_gb": deprocess_image(mask[..., None] * gradient),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastcam.compat.cam", description=__doc__)
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--image-path", default="./examples/both.png", help="default: %(default)s")
    parser.add_argument("--aug-smooth", action="store_true", help="mean over six augmentations of the image")
    parser.add_argument("--eigen-smooth", action="store_true", help="principal component instead of the sum")
    parser.add_argument("--method", choices=METHODS, default="gradcam", help="default: %(default)s")
    parser.add_argument("--output-dir", type=Path, default=Path("output"), help="default: %(default)s")
    parser.add_argument("--model", default="resnet50", help="torchvision name, or package.module:callable")
    parser.add_argument("--layer", default="layer4", help="name, index path or glob; default: %(default)s")
    parser.add_argument("--weights", help="torchvision name, or a file; default: DEFAULT if it was downloaded before")
    return parser


def _cached(name: str) -> str | None:
    """The name DEFAULT if torchvision's weights of the model are on this machine."""
    try:
        from torchvision.models import get_model_weights

        file = get_model_weights(name)["DEFAULT"].url.rsplit("/", 1)[-1]
    except (ImportError, KeyError, ValueError):
        return None
    return "DEFAULT" if Path(torch.hub.get_dir(), "checkpoints", file).exists() else None


if __name__ == "__main__":
    sys.exit(main())
