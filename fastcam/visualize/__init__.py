"""What a network sees: gradients of the input, by the name they have in the command line."""

from fastcam.visualize.gradients import InputGradient
from fastcam.visualize.integrated import IntegratedGradients
from fastcam.visualize.saliency import DeconvNet, GuidedBackprop, GuidedGradCAM, InputXGradient, Saliency
from fastcam.visualize.smoothgrad import SmoothGrad

SALIENCY: dict[str, type[InputGradient]] = {
    "saliency": Saliency,
    "inputxgradient": InputXGradient,
    "smoothgrad": SmoothGrad,
    "integratedgradients": IntegratedGradients,
    "guidedbackprop": GuidedBackprop,
    "deconvnet": DeconvNet,
    "guidedgradcam": GuidedGradCAM,
}
