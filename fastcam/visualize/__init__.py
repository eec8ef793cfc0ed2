"""What a network sees: gradients of the input, by the name they have in the command line."""

from fastcam.visualize.saliency import DeconvNet, GuidedBackprop, GuidedGradCAM

SALIENCY: dict[str, type[GuidedBackprop] | type[DeconvNet] | type[GuidedGradCAM]] = {
    "guidedbackprop": GuidedBackprop,
    "deconvnet": DeconvNet,
    "guidedgradcam": GuidedGradCAM,
}
