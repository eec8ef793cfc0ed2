"""Maps without scaling or resizing: steps overridden, replaced on an object, replaced on the class."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


class GradCAMNoRescale(GradCAM):
    def compute_cam_per_layer(self, input_tensor, targets, eigen_smooth):
        activations_list = [a.cpu().data.numpy() for a in self.activations_and_grads.activations]
        grads_list = [g.cpu().data.numpy() for g in self.activations_and_grads.gradients]
        cam_per_target_layer = []
        for i in range(len(self.target_layers)):
            cam = self.get_cam_image(
                input_tensor, self.target_layers[i], targets, activations_list[i], grads_list[i], eigen_smooth
            )
            cam_per_target_layer.append(cam[:, None, :])
        return cam_per_target_layer

    def aggregate_multi_layers(self, cam_per_target_layer):
        return np.mean(np.concatenate(cam_per_target_layer, axis=1), axis=1)


class RawForward(XGradCAM):
    def forward(self, input_tensor, targets, eigen_smooth=False):
        outputs = self.activations_and_grads(input_tensor.to(self.device))
        self.model.zero_grad()
        loss = sum(target(output) for target, output in zip(targets, outputs))
        loss.backward(retain_graph=True)
        A = self.activations_and_grads.activations[0].numpy()
        G = self.activations_and_grads.gradients[0].numpy()
        return self.get_cam_image(input_tensor, self.target_layers[0], targets, A, G, eigen_smooth)


def main(out):
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(8, 10, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6)
    ).eval()
    x = torch.randn(3, 3, 36, 44)
    model(x)
    targets = [ClassifierOutputTarget(c) for c in (0, 3, 5)]
    results = {"no_rescale": GradCAMNoRescale(model, [model[3]])(x, targets)}
    results["raw_forward"] = RawForward(model, [model[1]])(x, targets)
    for cls in (GradCAM, LayerCAM, EigenCAM):
        cam = cls(model, [model[3]])
        results[cls.__name__] = cam(x, targets)
        cam.get_target_width_height = lambda tensor: None
        results[cls.__name__ + "_low"] = cam(x, targets)
        cam.get_target_width_height = lambda tensor: (30, 20)
        results[cls.__name__ + "_fixed"] = cam(x, targets, aug_smooth=False, eigen_smooth=False)
        cam.activations_and_grads.release()
    original = BaseCAM.get_target_width_height
    BaseCAM.get_target_width_height = lambda self, tensor: (tensor.size(-1) // 2, tensor.size(-2) // 2)
    results["half"] = LayerCAM(model, [model[1], model[3]])(x, targets)
    BaseCAM.get_target_width_height = original
    results["full"] = LayerCAM(model, [model[1], model[3]])(x, targets)
    for name, array in list(results.items()):
        results[name + "_scale"] = np.array(array.max())
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
