"""Reduced and mixed precision: autocast with a reshape_transform that widens, and double precision."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import EigenGradCAM, GradCAM, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


def to_float(tensor):
    return tensor.float()


class FloatGradCAM(GradCAM):
    """Scales the loss's gradients back, as somebody with a scaler does."""

    def get_cam_weights(self, input_tensor, target_layers, targets, activations, grads):
        return super().get_cam_weights(input_tensor, target_layers, targets, activations, np.float32(grads) / 128)


def main(out):
    torch.manual_seed(9)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6)
    ).eval()
    x = torch.randn(2, 3, 32, 40)
    model(x)
    targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(4)]
    scaled = [lambda output, c=c: output[c] * 128 for c in (1, 4)]
    results = {}
    for cls in (GradCAM, HiResCAM, LayerCAM, XGradCAM):
        with torch.autocast("cpu", dtype=torch.bfloat16), cls(model, [model[3]], to_float) as cam:
            results[cls.__name__ + "_autocast"] = cam(x, targets)
            results[cls.__name__ + "_outputs"] = cam.outputs.detach().float().numpy()
    with torch.autocast("cpu", dtype=torch.bfloat16), FloatGradCAM(model, [model[3]], to_float) as cam:
        results["scaled"] = cam(x, scaled)
    model.double()
    for cls in (GradCAM, EigenGradCAM, XGradCAM):
        with cls(model, [model[1], model[3]]) as cam:
            results[cls.__name__ + "_double"] = cam(x.double(), targets, aug_smooth=True)
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
