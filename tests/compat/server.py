"""A server: requests in many threads, a network and its maps for each thread, frozen weights."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, ScoreCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

METHODS = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "hirescam": HiResCAM, "scorecam": ScoreCAM}
LOCAL = threading.local()


def network():
    torch.manual_seed(8)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(10 * 196, 5)
    ).eval()


MODEL = network()


def explain(request):
    name, image, category = request
    if not hasattr(LOCAL, "cams"):
        model = copy.deepcopy(MODEL)
        LOCAL.cams = {name: cls(model, [model[3]]) for name, cls in METHODS.items()}
        for cam in LOCAL.cams.values():
            cam.batch_size = 32
    cam = LOCAL.cams[name]
    targets = None if category is None else [ClassifierOutputTarget(category)]
    grayscale = cam(input_tensor=torch.from_numpy(image.transpose(2, 0, 1))[None], targets=targets)[0]
    return grayscale, show_cam_on_image(image, grayscale, use_rgb=True), cam.outputs.detach().numpy()


def main(out):
    rng = np.random.default_rng(8)
    categories = [None, 0, 1, 2, 3, 4]
    requests = [
        (name, rng.random((32, 32, 3)).astype(np.float32), categories[i % 6]) for i in range(9) for name in METHODS
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(explain, requests))
    maps, pictures, outputs = (np.stack(part) for part in zip(*answers))
    np.savez(out, maps=maps, pictures=pictures, outputs=outputs)


if __name__ == "__main__":
    main(sys.argv[1])
