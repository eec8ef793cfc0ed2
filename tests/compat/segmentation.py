"""Semantic segmentation: a wrapper around a dictionary, and a target that is a sum over a category's pixels."""

import sys
from collections import OrderedDict

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMElementWise, HiResCAM, ScoreCAM, XGradCAM
from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image
from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget
from torch import nn


class Network(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Conv2d(12, classes, 1)

    def forward(self, x):
        out = nn.functional.interpolate(self.classifier(self.backbone(x)), x.shape[2:], mode="bilinear")
        return OrderedDict(out=out, aux=out * 0)


class SegmentationModelOutputWrapper(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)["out"]


class MeanTarget:
    def __init__(self, category, mask):
        self.category = category
        self.mask = torch.from_numpy(mask)

    def __call__(self, model_output):
        return (model_output[self.category, :, :] * self.mask).sum() / self.mask.sum()


def main(out):
    torch.manual_seed(3)
    image = np.random.default_rng(3).integers(0, 256, (44, 52, 3), dtype=np.uint8)
    rgb_img = np.float32(image) / 255
    input_tensor = preprocess_image(rgb_img, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    model = SegmentationModelOutputWrapper(Network().eval())
    output = model(input_tensor)
    normalized_masks = torch.nn.functional.softmax(output, dim=1).cpu()
    category = int(normalized_masks[0].mean((1, 2)).argmax())
    mask = np.float32(normalized_masks[0].argmax(axis=0).detach().cpu().numpy() == category)
    results = {"mask": mask, "input": input_tensor.numpy()}
    layers = [model.model.backbone]
    for cls in (GradCAM, HiResCAM, GradCAMElementWise, XGradCAM, EigenCAM, ScoreCAM):
        with cls(model=model, target_layers=layers) as cam:
            grayscale_cam = cam(input_tensor, [SemanticSegmentationTarget(category, mask * (cls is not ScoreCAM) / 99)])
            results[cls.__name__] = grayscale_cam
            grayscale_cam = cam(input_tensor=input_tensor, targets=[MeanTarget(category, mask)])[0, :]
            results[cls.__name__ + "_mean"] = grayscale_cam
            results[cls.__name__ + "_picture"] = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
