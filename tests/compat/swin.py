"""Transformers whose layers give tokens: a Swin network, channels last, and flat tokens with the library's transform."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import AblationCAM, EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM, XGradCAM
from pytorch_grad_cam.ablation_layer import AblationLayerVit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from pytorch_grad_cam.utils.reshape_transforms import swinT_reshape_transform
from torch import nn
from torchvision.models import SwinTransformer

METHODS = {
    "gradcam": GradCAM,
    "scorecam": ScoreCAM,
    "gradcam++": GradCAMPlusPlus,
    "ablationcam": AblationCAM,
    "xgradcam": XGradCAM,
    "eigencam": EigenCAM,
    "layercam": LayerCAM,
}


def reshape_transform(tensor):
    return tensor.permute(0, 3, 1, 2)


class Flat(nn.Module):
    """A network of flat tokens, as timm's Swin used to be."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.mix = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(tokens + self.mix(tokens).tanh()).relu().mean(1))


def main(out):
    torch.manual_seed(4)
    model = SwinTransformer([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=6).eval()
    x = torch.randn(2, 3, 32, 32)
    target_layers = [model.features[-1][-1].norm1]
    results = {}
    for name, cls in METHODS.items():
        if name == "ablationcam":
            options = {"ablation_layer": AblationLayerVit()}
        else:
            options = {}
        cam = cls(model=model, target_layers=target_layers, reshape_transform=reshape_transform, **options)
        cam.batch_size = 16
        if name != "ablationcam":  # which knows flat tokens only
            results[name] = cam(input_tensor=x, targets=[ClassifierOutputTarget(2), ClassifierOutputTarget(5)])
        flat = Flat()
        cam = cls(flat, [flat.norm], lambda t: swinT_reshape_transform(t, height=4, width=4), **options)
        cam.batch_size = 32
        targets = [ClassifierOutputSoftmaxTarget(2), ClassifierOutputSoftmaxTarget(5)]
        results[name + "_flat"] = cam(input_tensor=x, targets=targets, eigen_smooth=name == "layercam")
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
