"""New methods as subclasses, with numpy in and out, and the steps of a method called by hand."""

import sys

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam import ActivationsAndGradients, GradCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import nn


class MaxGradCAM(BaseCAM):
    def __init__(self, model, target_layers, reshape_transform=None):
        super().__init__(model, target_layers, reshape_transform)

    def get_cam_weights(self, input_tensor, target_layers, targets, activations, grads):
        return np.max(grads, axis=(2, 3))


class AbsoluteCAM(GradCAM):
    def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth=False):
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        return np.abs(weights[:, :, None, None] * activations).sum(axis=1)


class InputGradientCAM(BaseCAM):
    """Weighs the map by how much the input itself matters there."""

    def __init__(self, model, target_layers, reshape_transform=None):
        super().__init__(model, target_layers, reshape_transform, True, True, None, True)

    def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):
        scale = np.abs(input_tensor.grad.data.cpu().numpy()).mean(axis=(1, 2, 3))
        return scale[:, None, None] * get_2d_projection(grads * activations)


class MaxOfLayersCAM(GradCAM):
    def aggregate_multi_layers(self, cam_per_target_layer):
        cam_per_target_layer = np.concatenate(cam_per_target_layer, axis=1)
        return scale_cam_image(np.max(cam_per_target_layer, axis=1))


class SharpScoreCAM(ScoreCAM):
    def get_cam_weights(self, *args):
        weights = super().get_cam_weights(*args)
        return np.where(weights > weights.mean(axis=1, keepdims=True), weights, 0)


class NoisyRecorder(ActivationsAndGradients):
    def __call__(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().__call__(x) * 2


def build():
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU()
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 6))


def main(out):
    model, x = build(), torch.rand(3, 3, 40, 36)
    layers = [model[0][3], model[0][5]]
    targets = [ClassifierOutputTarget(c) for c in (1, 4, 2)]
    results = {}
    for cls in (MaxGradCAM, AbsoluteCAM, InputGradientCAM, MaxOfLayersCAM, SharpScoreCAM):
        with cls(model=model, target_layers=layers) as cam:
            cam.batch_size = 8
            results[cls.__name__] = cam(input_tensor=x, targets=targets)
            results[cls.__name__ + "_outputs"] = cam.outputs.detach().numpy()
            if cls is not InputGradientCAM:
                results[cls.__name__ + "_smooth"] = cam(x, targets, aug_smooth=True)

    cam = GradCAM(model, layers)
    results["predicted"] = cam(x, None)
    cam.activations_and_grads.release()
    cam.activations_and_grads = NoisyRecorder(cam.model, cam.target_layers, None)
    results["doubled"] = cam(x, targets)
    results["doubled_outputs"] = cam.outputs.detach().numpy()
    results["calls"] = np.array(cam.activations_and_grads.calls)
    cam.activations_and_grads.release()

    cam = GradCAM(model, layers)
    outputs = cam.activations_and_grads(x)
    model.zero_grad()
    sum(target(output) for target, output in zip(targets, outputs)).backward()
    for n, layer in enumerate(layers):
        activations = cam.activations_and_grads.activations[n].cpu().data.numpy()
        grads = cam.activations_and_grads.gradients[n].cpu().data.numpy()
        results[f"activations{n}"], results[f"grads{n}"] = activations, grads
        for name in ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "GradCAMElementWise"):
            other = getattr(pytorch_grad_cam, name)(model, layers)
            results[f"{name}{n}"] = other.get_cam_image(x, layer, targets, activations, grads, False)
            other.activations_and_grads.release()
        results[f"weights{n}"] = cam.get_cam_weights(x, layer, targets, activations, grads)

    cam(x, targets)
    results["kept"] = cam.activations_and_grads.activations[1].numpy()
    methods = {c.__name__.lower(): c for c in pytorch_grad_cam.base_cam.BaseCAM.__subclasses__()}
    results["methods"] = np.array(sorted(set(methods) & {"gradcam", "scorecam", "eigencam", "ablationcam", "layercam"}))
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
