"""Make the demo's files: `digits.npz` from scikit-learn (if absent) and `weights.pt` by training.

    python fastcam/demo_data/train.py

needs fastcam and scikit-learn installed and takes some minutes on one core, without a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from fastcam import GradCAM
from fastcam.metrics import pointing_game
from fastcam.scenes import DATA, DigitNet, Scenes, load_network, make_scenes

STEPS = 1200
BATCH = 64


def write_digits() -> None:
    """Write scikit-learn's 8 x 8 digits, whose grey levels 0 to 16 fit a byte, unless they are there."""
    if (DATA / "digits.npz").exists():
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez_compressed(
        DATA / "digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8)
    )


def train(report: Callable[[str], None] = print) -> DigitNet:
    """Train on scenes drawn afresh for each step; on one machine and one core the weights repeat."""
    torch.manual_seed(0)
    network = DigitNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    total = 0.0
    for step in range(1, STEPS + 1):
        scenes = make_scenes(BATCH, "train", seed=step)
        # Label smoothing gains no accuracy here, and costs Grad-CAM up to a tenth of its pointing game.
        loss = F.cross_entropy(network(scenes.images), scenes.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            report(f"step {step:4d}/{STEPS}  loss {total / 100:.3f}")
            total = 0.0
    return network.eval()


def evaluate(network: DigitNet, scenes: Scenes) -> tuple[float, float]:
    """Accuracy, and Grad-CAM's pointing game for the true class at `stage3`."""
    with torch.no_grad():
        accuracy = (network(scenes.images).argmax(1) == scenes.labels).float().mean().item()
    maps = GradCAM(network, "stage3").attribute(scenes.images, scenes.labels)
    return accuracy, pointing_game(maps, scenes.boxes)


def main() -> None:
    """Write both files and print how good the stored network is on 2000 test scenes."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    write_digits()
    network = train()
    torch.save({name: value.half() for name, value in network.state_dict().items()}, DATA / "weights.pt")
    accuracy, pointing = evaluate(load_network(), make_scenes(2000, "test"))
    seconds = time.perf_counter() - start
    print(f"accuracy {accuracy:.3f}  Grad-CAM pointing game {pointing:.3f}  in {seconds:.0f} s")


if __name__ == "__main__":
    main()
