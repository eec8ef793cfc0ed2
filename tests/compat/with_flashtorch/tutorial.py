"""The four steps of a well-known tutorial on its model: kernels, feature maps by a hook, a class map, FlashTorch."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from flashtorch.activmax import GradientAscent
from flashtorch.saliency import Backprop
from flashtorch.utils import apply_transforms, load_image
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torch import nn
from torchvision import models


def network():
    torch.manual_seed(0)
    model = models.resnet18()
    model.conv1 = nn.Conv2d(1, 64, (7, 7), (2, 2), (3, 3), bias=False)
    model.fc = nn.Linear(model.fc.in_features, 10)
    return model


def main(out):
    model = network()
    digit = np.zeros((28, 28), np.uint8)
    digit[5:8, 8:20] = digit[8:23, 15:18] = 255
    Image.fromarray(digit).save(out.replace(".npz", ".png"))

    # 1. kernels
    kernels = model.conv1.weight.detach().clone()
    plt.figure(figsize=(8, 8))
    for i in range(16):
        plt.subplot(4, 4, i + 1)
        plt.imshow(kernels[i][0], cmap="gray")
        plt.axis("off")
    plt.savefig(out.replace(".npz", "_kernels.png"))

    # 2. feature maps
    activation = {}

    def get_activation(name):
        def hook(model, input, output):
            activation[name] = output.detach()

        return hook

    handle = model.conv1.register_forward_hook(get_activation("conv1"))
    input_ = apply_transforms(load_image(out.replace(".npz", ".png")).convert("L"), size=112)
    model.eval()
    output = model(input_)
    handle.remove()
    act = activation["conv1"].squeeze()
    fig, axarr = plt.subplots(4, 4)
    for idx in range(16):
        axarr.flat[idx].imshow(act[idx])
    plt.savefig(out.replace(".npz", "_maps.png"))

    # 3. a class activation map
    cam = GradCAM(model=model, target_layers=[model.layer4[-1]])
    grayscale_cam = cam(input_tensor=input_)[0, :]
    rgb = np.float32(np.repeat(np.array(Image.fromarray(digit).resize((112, 112)))[..., None], 3, -1)) / 255
    visualization = show_cam_on_image(rgb, grayscale_cam, use_rgb=True)
    plt.imsave(out.replace(".npz", "_cam.png"), visualization)

    # 4. FlashTorch
    backprop = Backprop(model)
    top = int(output.argmax())
    gradients, _ = backprop.visualize(input_, top, guided=True, return_output=True)
    plt.savefig(out.replace(".npz", "_saliency.png"))
    np.random.seed(0)
    g_ascent = GradientAscent(model, img_size=56)
    images = g_ascent.visualize(model.layer1[0].conv1, [5, 6, 7, 8, 9], num_iter=5, title="conv", return_output=True)
    plt.savefig(out.replace(".npz", "_filters.png"))
    np.savez(
        out,
        x=input_.detach().numpy(),
        target=np.array(top),
        cam=grayscale_cam[None],
        guided=gradients.numpy(),
        filters=torch.cat([i[-1] for i in images]).detach().numpy(),
        feature_maps=act.numpy(),
    )


if __name__ == "__main__":
    main(sys.argv[1])
