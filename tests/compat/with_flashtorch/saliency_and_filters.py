"""FlashTorch as its own notebooks use it: saliency, plain and guided, filters of a layer, a dream."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
import torchvision.models as models
from flashtorch.activmax import GradientAscent
from flashtorch.saliency import Backprop
from flashtorch.utils import apply_transforms, denormalize, format_for_plotting, load_image, standardize_and_clip
from flashtorch.utils.imagenet import ImageNetIndex
from PIL import Image


def network():
    torch.manual_seed(11)
    return models.squeezenet1_1()


def main(out):
    rows, columns = np.mgrid[:200, :260]
    disc = ((rows - 90) ** 2 + (columns - 150) ** 2 < 60**2)[..., None]
    photo = out.replace(".npz", ".png")
    pixels = np.where(disc, [230, 120, 40], np.stack([rows, columns // 2, rows // 2], -1)).astype(np.uint8)
    Image.fromarray(pixels).save(photo)

    image = load_image(photo)
    plt.imshow(image)
    plt.title("Original image")
    plt.axis("off")
    model = network()
    backprop = Backprop(model)
    imagenet = ImageNetIndex()
    target_class = imagenet["foxhound"]
    input_ = apply_transforms(image, size=96)
    results = {"x": input_.detach().numpy(), "target": np.array(target_class)}
    backprop.visualize(input_, target_class, guided=False, use_gpu=False)
    plt.savefig(out.replace(".npz", "_saliency.png"))
    gradients, largest = backprop.visualize(input_, target_class, guided=True, use_gpu=True, return_output=True)
    plt.savefig(out.replace(".npz", "_guided.png"))
    results["guided"], results["guided_max"] = gradients.numpy(), largest.numpy()
    results["plain"] = backprop.calculate_gradients(input_, target_class).numpy()
    results["plain_max"] = backprop.calculate_gradients(input_, target_class, take_max=True).numpy()
    results["dalmatian"] = backprop.calculate_gradients(input_, imagenet["dalmatian dog"]).numpy()
    results["seen"] = format_for_plotting(denormalize(input_)).numpy()

    np.random.seed(4)
    g_ascent = GradientAscent(model.features, img_size=72)
    conv = model.features[3].expand3x3
    output = g_ascent.optimize(conv, 6, num_iter=4)
    results["filter"] = torch.cat(output).detach().numpy()
    g_ascent.visualize(conv, 6, num_iter=2, title="fire, filter 6")
    plt.savefig(out.replace(".npz", "_filter.png"))
    filters = np.random.choice(conv.out_channels, 4, replace=False)
    output = g_ascent.visualize(conv, filters, num_iter=2, title="fire", return_output=True)
    results["filters"] = np.stack([standardize_and_clip(images[-1])[0].numpy() for images in output])
    plt.savefig(out.replace(".npz", "_filters.png"))
    g_ascent.visualize(conv, num_iter=1, num_subplots=2)
    g_ascent.lr, g_ascent.img_size = 0.5, 64
    dream = g_ascent.deepdream(photo, model.features[6].expand1x1, 3, num_iter=3, return_output=True)
    plt.savefig(out.replace(".npz", "_dream.png"))
    results["dream"] = torch.cat(dream).detach().numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(sys.argv[1])
