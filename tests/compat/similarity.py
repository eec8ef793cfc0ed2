"""Similarity instead of classes: a CLIP-like pair of encoders, and embeddings of a convolutional network."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import EigenGradCAM, GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.layer_norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.3)
        self.layers = nn.ModuleList([Block(width) for _ in range(2)])

    def forward(self, pixel_values):
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


class ImageClassifier(nn.Module):
    """Logits of labels, as usage_examples/clip_example.py makes them of CLIP."""

    def __init__(self, encoder, texts):
        super().__init__()
        self.clip = encoder
        self.texts = texts

    def forward(self, pixel_values):
        image = self.clip(pixel_values)
        image = image / image.norm(dim=-1, keepdim=True)
        return 10 * image @ self.texts.t()


def reshape_transform(tensor, height=4, width=4):
    result = tensor[:, 1:, :].reshape(tensor.size(0), height, width, tensor.size(2))
    return result.transpose(2, 3).transpose(1, 2)


class SimilarityToConceptTarget:
    def __init__(self, features):
        self.features = features

    def __call__(self, model_output):
        return torch.nn.CosineSimilarity(dim=0)(model_output, self.features)


def main(out):
    torch.manual_seed(2)
    texts = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    model = ImageClassifier(VisionEncoder(), texts).eval()
    x = torch.randn(2, 3, 32, 32)
    layers = [model.clip.layers[-1].layer_norm1]
    results = {}
    for cls in (GradCAM, HiResCAM, LayerCAM, EigenGradCAM):
        with cls(model=model, target_layers=layers, reshape_transform=reshape_transform) as cam:
            results[cls.__name__] = cam(input_tensor=x, targets=[ClassifierOutputTarget(3)] * 2)
            results[cls.__name__ + "_predicted"] = cam(input_tensor=x, targets=None)

    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
    extractor = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    concept = extractor(torch.randn(1, 3, 32, 32))[0, :]
    targets = [SimilarityToConceptTarget(concept), lambda output: -SimilarityToConceptTarget(concept)(output)]
    for target, name in zip(targets, ("like", "unlike")):
        with GradCAM(model=extractor, target_layers=[features[1], features[3]]) as cam:
            results[name] = cam(input_tensor=x, targets=[target] * 2)
            results[name + "_outputs"] = cam.outputs.detach().numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
