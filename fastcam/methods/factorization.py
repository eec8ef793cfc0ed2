"""Deep feature factorization: the concepts in a layer's activations, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.layers import default_layer
from fastcam.methods.base import BaseCAM
from fastcam.record import check_input, record


def dff(activations: Any, n_components: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative matrix factorisation of activations (Collins, Achanta and Süsstrunk, ECCV 2018, arXiv:1806.10206).

    A_cn - min_n A_cn ≈ sum_k W_ck H_kn,  n over all positions of all images;  concepts = W_ck + min_n A_cn

    activations    array or tensor `(B, C, *S)`, left as it is; a NaN counts as 0
    Returns the concepts `(C, K)` and their explanations H as `(B, K, *S)`, both numpy, K = `n_components`. The solver
    is scikit-learn's from one random start, as in pytorch-grad-cam: the numbers are its own.
    Raises ImportError without scikit-learn, ValueError for another shape or no component.
    """
    try:
        from sklearn.decomposition import NMF
    except ImportError as error:
        raise ImportError("deep feature factorization needs scikit-learn: pip install 'fastcam[dff]'") from error
    if isinstance(activations, Tensor):
        activations = ops.wide(activations.detach()).cpu().numpy()
    if activations.ndim < 3:
        raise ValueError(f"activations must be (B, C, h, w), got {activations.shape}")
    if n_components < 1:
        raise ValueError(f"n_components must be 1 or more, got {n_components}")
    B, C, *S = activations.shape
    A = np.moveaxis(activations, 1, 0).reshape(C, -1)
    A = np.where(np.isnan(A), 0, A)
    offset = A.min(axis=1, keepdims=True)
    solver = NMF(n_components=n_components, init="random", random_state=0)
    concepts = solver.fit_transform(A - offset) + offset
    return concepts, np.moveaxis(solver.components_.reshape(n_components, B, *S), 0, 1)


class DeepFeatureFactorization:
    """Deep feature factorization of a layer: which concepts the images share, and where each of them is; see `dff`.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    >>> concepts, maps = DeepFeatureFactorization(model, "1")(torch.rand(2, 1, 8, 8), n_components=2)
    >>> concepts.shape, maps[0].shape
    ((4, 2), (2, 8, 8))
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: Any = None,
        reshape_transform: Callable[[Any], Tensor] | None = None,
        computation_on_concepts: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Bind to a model, which is left exactly as it was.

        target_layer              one layer, as for `GradCAM`; None for the last convolutional stage
        reshape_transform         as for `GradCAM`
        computation_on_concepts   from the concepts `(K, C)`, a tensor like the activations, to a tensor; the model's
                                  classifier, say
        """
        self._cam = BaseCAM(model, target_layer, reshape_transform)
        if self._cam.target_layers is not None and len(self._cam.target_layers) > 1:
            raise ValueError(f"target_layer must be one layer, got {len(self._cam.target_layers)}")
        self.model = model
        self.computation_on_concepts = computation_on_concepts

    def __call__(self, input_tensor: Tensor, n_components: int = 16) -> tuple[Any, ...]:
        """The concepts `(C, K)`, and for each image their maps `(K, *S)` in [0, 1] at the size of the input.

        A third entry is what `computation_on_concepts` makes of the concepts, if it was given. All are numpy, the maps
        in a list. The model stops at the layer. Raises as `dff` and `GradCAM` do.
        """
        check_input(input_tensor)
        layers = self._cam.target_layers or [default_layer(self.model, input_tensor)]
        with record(self.model, layers, input_tensor, gradients=False, complete=False) as run:
            (A,) = self._cam.spatial(run, run.activations)
            concepts, explanations = dff(A, n_components)
            size = input_tensor.shape[2:]
            flat = torch.from_numpy(np.ascontiguousarray(explanations)).flatten(0, 1)  # (B K, *S)
            maps = ops.resize(ops.min_max(flat), size).unflatten(0, (-1, n_components)).float().numpy()
            if self.computation_on_concepts is None:
                return concepts, list(maps)
            outputs = self.computation_on_concepts(torch.from_numpy(concepts.T).to(A.device, A.dtype))
            return concepts, list(maps), ops.wide(outputs).detach().cpu().numpy()

    def __enter__(self) -> DeepFeatureFactorization:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo: a call leaves nothing in the model."""


def run_dff_on_image(
    model: nn.Module,
    target_layer: Any,
    classifier: Callable[[Tensor], Tensor],
    img_pil: Any,
    img_tensor: Tensor,
    reshape_transform: Callable[[Any], Tensor] | None = None,
    n_components: int = 5,
    top_k: int = 2,
) -> np.ndarray:
    """The concepts of one image as a picture, uint8 `(H, 3 W, 3)`: the image, its concepts in colours, and a legend.

    classifier   from concepts `(K, C)` to logits; the legend names each concept's `top_k` classes, by
                 `model.config.id2label` if it has that, and their probabilities
    img_pil      the image, RGB, as Pillow or numpy has it, of the size `(H, W)` of `img_tensor`
    img_tensor   `(k, H, W)`, as the model takes it
    Raises as `DeepFeatureFactorization` does.
    """
    from fastcam.figures.factors import create_labels_legend, show_factorization_on_image

    picture = np.array(img_pil)
    factorize = DeepFeatureFactorization(model, target_layer, reshape_transform, classifier)
    _, maps, logits = factorize(img_tensor[None], n_components)
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    names = getattr(getattr(model, "config", None), "id2label", None)
    names = names or {c: f"class {c}" for c in range(probabilities.shape[-1])}
    legend = create_labels_legend(probabilities, names, top_k)
    shown = show_factorization_on_image(picture / 255, maps[0], image_weight=0.3, concept_labels=legend)
    return np.hstack((picture, shown))
