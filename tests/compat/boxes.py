"""Pictures: maps renormalised inside boxes, guided backpropagation, and all options of the overlay."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GuidedBackpropReLUModel
from pytorch_grad_cam.utils.find_layers import find_layer_types_recursive
from pytorch_grad_cam.utils.image import (
    deprocess_image,
    preprocess_image,
    scale_accross_batch_and_channels,
    scale_cam_image,
    show_cam_on_image,
)
from torch import nn


def renormalize_cam_in_bounding_boxes(boxes, image_float_np, grayscale_cam):
    """Normalize the CAM to be in the range [0, 1] inside every bounding box, and zero outside."""
    renormalized_cam = np.zeros(grayscale_cam.shape, dtype=np.float32)
    images = []
    for x1, y1, x2, y2 in boxes:
        img = renormalized_cam * 0
        img[y1:y2, x1:x2] = scale_cam_image(grayscale_cam[y1:y2, x1:x2].copy())
        images.append(img)
    renormalized_cam = np.max(np.float32(images), axis=0)
    renormalized_cam = scale_cam_image(renormalized_cam)
    eigencam_image_renormalized = show_cam_on_image(image_float_np, renormalized_cam, use_rgb=True)
    return renormalized_cam, eigencam_image_renormalized


def main(out):
    torch.manual_seed(6)
    rng = np.random.default_rng(6)
    rgb_img = rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)
    image_float_np = np.float32(rgb_img) / 255
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    )
    input_tensor = preprocess_image(rgb_img)
    model(input_tensor)
    target_layers = [find_layer_types_recursive(model, [nn.ReLU])[-1]]
    with EigenCAM(model, target_layers) as cam:
        grayscale_cam = cam(input_tensor, targets=[])[0, :]
    boxes = [(4, 6, 30, 40), (20, 10, 60, 48), (0, 0, 5, 5)]
    results = {"input": input_tensor.numpy(), "cam": grayscale_cam}
    results["renormalized"], results["picture"] = renormalize_cam_in_bounding_boxes(
        boxes, image_float_np, grayscale_cam
    )
    results["bgr"] = show_cam_on_image(image_float_np, grayscale_cam, image_weight=0.7)
    for colormap in (0, 8, 13, 16, 20):
        results[f"colormap{colormap}"] = show_cam_on_image(image_float_np, grayscale_cam, True, colormap)
    small = rng.random((3, 7, 9)).astype(np.float32)
    for size in (None, (9, 7), (36, 28), (20, 31), (5, 4)):
        results[f"scaled{size}"] = scale_cam_image(small, size)
    results["lines"] = scale_cam_image(small[0], (6, 8))
    results["channels"] = scale_accross_batch_and_channels(rng.random((2, 3, 5, 6)).astype(np.float32), (12, 10))
    with GradCAM(model, target_layers) as cam:
        grad_cam = cam(input_tensor, None)[0]
    gb = GuidedBackpropReLUModel(model=model, device="cpu")(input_tensor.clone(), target_category=None)
    results["gb"] = gb
    # A rounding in the gradient may move a level.
    results["gb_levels"] = deprocess_image(gb).astype(np.float32) / 255
    results["cam_gb"] = np.float32(grad_cam[..., None] * gb)
    results["deprocessed"] = deprocess_image(rng.normal(size=(8, 9, 3)))
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
