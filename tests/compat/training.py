"""A training loop that draws a map after every epoch and lets the maps weigh the next epoch's images."""

import sys

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn


def main(out):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    images, labels = torch.randn(24, 3, 20, 20), torch.randint(0, 4, (24,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    results, losses = {}, []
    focus = torch.ones(24, 1, 20, 20)
    monitor = GradCAM(model=model, target_layers=[model[4]])
    for epoch in range(3):
        model.train()
        for start in range(0, 24, 8):
            batch = slice(start, start + 8)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch] * focus[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        targets = [ClassifierOutputTarget(label) for label in labels.tolist()]
        maps = monitor(input_tensor=images, targets=targets)
        focus = 0.5 + torch.from_numpy(maps)[:, None]
        with GradCAMPlusPlus(model=model, target_layers=[model[1], model[4]]) as cam:
            results[f"plus{epoch}"] = cam(input_tensor=images[:4], targets=targets[:4], aug_smooth=True)
        results[f"maps{epoch}"] = maps
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 324, 3))
    with GradCAM(fresh, [fresh[0]]):
        pass
    results["still_in_training"] = np.array(fresh.training)
    results["losses"] = np.array(losses)
    results["weights"] = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
