"""Detectors: a model that gives a list of dictionaries, and a wrapper that ignores what it is called with."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import AblationCAM, AblationLayer, ActivationsAndGradients, EigenCAM, GradCAM
from pytorch_grad_cam.utils.model_targets import FasterRCNNBoxScoreTarget
from torch import nn


class Detector(nn.Module):
    """Fixed boxes in a grid, each scored from the features inside it."""

    def __init__(self, classes=4):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.score = nn.Conv2d(12, classes, 8, 8)

    def forward(self, x):
        scores = self.score(self.backbone(x)).flatten(2)
        side = 16
        corners = [(c, r) for r in range(0, x.shape[2], side) for c in range(0, x.shape[3], side)]
        boxes = torch.tensor([[c, r, c + side, r + side] for c, r in corners], dtype=torch.float32)
        found = [row.softmax(0).max(0) for row in scores]
        return [{"boxes": boxes, "labels": f.indices, "scores": f.values} for f in found]


class DetCAMModel(nn.Module):
    """As mmdetection's visualiser has it: the image is set beforehand, the argument of the call does not matter."""

    def __init__(self, detector):
        super().__init__()
        self.device = "cpu"
        self.detector = detector
        self.input_data = None
        self.return_loss = False

    def set_input_data(self, image):
        self.input_data = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def __call__(self, *args, **kwargs):
        results = self.detector(self.input_data)[0]
        if self.return_loss:
            return [results["scores"].sum().reshape(1)]
        return [[np.c_[results["boxes"], results["scores"].detach()], results["labels"].numpy()]]


class DetBoxScoreTarget:
    def __init__(self, labels):
        self.labels = labels

    def __call__(self, results):
        output = torch.zeros(1)
        if len(results) == 1:
            return results[0]
        for (*_, score), label in zip(*results):
            output = output + float(score) * float(label in self.labels)
        return output


class DetAblationLayer(AblationLayer):
    def set_next_batch(self, input_batch_index, activations, num_channels_to_ablate):
        self.activations = activations[input_batch_index][None].repeat(num_channels_to_ablate, 1, 1, 1).clone()

    def __call__(self, x):
        output = self.activations
        for i in range(output.size(0)):
            output[i, self.indices[i]] = 0
        return output


def main(out):
    torch.manual_seed(1)
    model = Detector()
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 32, 48))
    model.eval()
    x = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        found = model(x)[0]
    results = {"scores": found["scores"].numpy()}
    layers = [model.backbone]
    targets = [FasterRCNNBoxScoreTarget(labels=found["labels"], bounding_boxes=found["boxes"])]
    results["eigen"] = EigenCAM(model, layers)(x, targets=targets)
    results["eigen_smooth"] = EigenCAM(model, layers)(x, targets, aug_smooth=True, eigen_smooth=True)
    results["grad"] = GradCAM(model, layers)(x, targets=targets)
    for ratio in (1.0, 0.25):
        cam = AblationCAM(model, layers, ablation_layer=DetAblationLayer(), ratio_channels_to_ablate=ratio)
        results[f"ablation{ratio}"] = cam(x, targets=targets)
    results["none"] = EigenCAM(model, layers)(x, targets=[])

    wrapper = DetCAMModel(model)
    image = (np.random.default_rng(0).random((32, 48, 3)) * 255).astype(np.uint8)
    wrapper.set_input_data(image)
    tensor = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    for cls, loss in ((EigenCAM, False), (GradCAM, True)):
        wrapper.return_loss = loss
        cam = cls(wrapper, [model.backbone[2]])
        cam.activations_and_grads.release()
        cam.activations_and_grads = ActivationsAndGradients(wrapper, [model.backbone[2]], None)
        results[f"wrapped_{cls.__name__}"] = cam(tensor, [DetBoxScoreTarget(set(range(4)))])[0, :]
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
