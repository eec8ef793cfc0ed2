"""FlashTorch and pytorch-grad-cam in one script, on a ResNet-18 for 1-channel images that is in training."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from flashtorch.activmax import GradientAscent
from flashtorch.saliency.backprop import Backprop
from flashtorch.utils import standardize_and_clip
from pytorch_grad_cam import GradCAM, GuidedBackpropReLUModel
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import resnet18


def network():
    torch.manual_seed(2)
    model = resnet18()
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    model.fc = nn.Linear(512, 10)
    return model


def main(out):
    model = network()
    x = torch.rand(2, 1, 56, 56)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(x), torch.tensor([3, 7])).backward()
    optimizer.step()
    grads = [p.grad.clone() for p in model.parameters()]
    statistics = [b.clone() for b in model.buffers()]
    results = {"x": x.numpy()}

    backprop = Backprop(model)
    saliency = torch.stack([backprop.calculate_gradients(x[n : n + 1], 7, guided=True) for n in range(2)])
    results["saliency"] = saliency.numpy()
    fig = backprop.visualize(x[:1], 7, guided=True, figsize=(12, 3))
    assert fig is None
    plt.savefig(out.replace(".npz", "_saliency.png"))
    with GradCAM(model=model.eval(), target_layers=[model.layer4[-1]]) as cam:
        results["cam"] = cam(input_tensor=x, targets=[ClassifierOutputTarget(7)] * 2)
    results["guided"] = GuidedBackpropReLUModel(model, "cpu")(x, 7)
    overlay = show_cam_on_image(np.repeat(x[0, 0, :, :, None].numpy(), 3, -1), results["cam"][0], use_rgb=True)
    plt.imsave(out.replace(".npz", "_cam.png"), overlay)
    results["plain"] = backprop.calculate_gradients(x[:1], 7).numpy()

    ascent = GradientAscent(model, img_size=40, lr=0.5)
    output = ascent.visualize(model.layer2[0].conv1, [0, 100], num_iter=3, return_output=True)
    plt.savefig(out.replace(".npz", "_filters.png"))
    results["filters"] = torch.cat([images[-1] for images in output]).detach().numpy()
    results["picture"] = standardize_and_clip(output[0][-1]).numpy()
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers()))
    results["weights"] = torch.cat([p.detach().flatten() for p in model.state_dict().values()]).numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
