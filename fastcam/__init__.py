"""fastcam: see what a vision network looks at."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcam.dataset.attribute import attribute_dataset as attribute_dataset
    from fastcam.dataset.map_batches import MapBatches as MapBatches
    from fastcam.dataset.maps import Maps as Maps
    from fastcam.dataset.maps import open_maps as open_maps
    from fastcam.dataset.sources import ImageFiles as ImageFiles
    from fastcam.fast.agreement import Agreement as Agreement
    from fastcam.fast.settings import Optimize as Optimize
    from fastcam.figures.factors import show_factorization_on_image as show_factorization_on_image
    from fastcam.figures.overlays import deprocess_image as deprocess_image
    from fastcam.figures.overlays import gradient_picture as gradient_picture
    from fastcam.figures.overlays import overlay as overlay
    from fastcam.figures.overlays import show_cam_on_image as show_cam_on_image
    from fastcam.images import check_contrast as check_contrast
    from fastcam.images import denormalize as denormalize
    from fastcam.images import load_image as load_image
    from fastcam.images import preprocess_image as preprocess_image
    from fastcam.layers import layer_table as layer_table
    from fastcam.methods import CAM as CAM
    from fastcam.methods import FEM as FEM
    from fastcam.methods import ISCAM as ISCAM
    from fastcam.methods import KPCA_CAM as KPCA_CAM
    from fastcam.methods import SESS as SESS
    from fastcam.methods import SSCAM as SSCAM
    from fastcam.methods import AblationCAM as AblationCAM
    from fastcam.methods import EigenCAM as EigenCAM
    from fastcam.methods import EigenGradCAM as EigenGradCAM
    from fastcam.methods import FasterScoreCAM as FasterScoreCAM
    from fastcam.methods import FinerCAM as FinerCAM
    from fastcam.methods import FullGrad as FullGrad
    from fastcam.methods import GradCAM as GradCAM
    from fastcam.methods import GradCAMElementWise as GradCAMElementWise
    from fastcam.methods import GradCAMPlusPlus as GradCAMPlusPlus
    from fastcam.methods import GroupCAM as GroupCAM
    from fastcam.methods import HiResCAM as HiResCAM
    from fastcam.methods import LayerCAM as LayerCAM
    from fastcam.methods import RandomCAM as RandomCAM
    from fastcam.methods import ReciproCAM as ReciproCAM
    from fastcam.methods import RefineCAM as RefineCAM
    from fastcam.methods import ScoreCAM as ScoreCAM
    from fastcam.methods import SegEigenCAM as SegEigenCAM
    from fastcam.methods import ShapleyCAM as ShapleyCAM
    from fastcam.methods import SimpleFullGrad as SimpleFullGrad
    from fastcam.methods import SmoothFullGrad as SmoothFullGrad
    from fastcam.methods import SmoothGradCAMpp as SmoothGradCAMpp
    from fastcam.methods import ViTReciproCAM as ViTReciproCAM
    from fastcam.methods import XGradCAM as XGradCAM
    from fastcam.methods.ablation_layers import AblationLayer as AblationLayer
    from fastcam.methods.ablation_layers import AblationLayerFasterRCNN as AblationLayerFasterRCNN
    from fastcam.methods.ablation_layers import AblationLayerVit as AblationLayerVit
    from fastcam.methods.attention import AttentionRollout as AttentionRollout
    from fastcam.methods.attention import GradientRollout as GradientRollout
    from fastcam.methods.attention import LeGrad as LeGrad
    from fastcam.methods.factorization import DeepFeatureFactorization as DeepFeatureFactorization
    from fastcam.methods.factorization import dff as dff
    from fastcam.methods.factorization import run_dff_on_image as run_dff_on_image
    from fastcam.methods.many import explain as explain
    from fastcam.model_targets import BinaryClassifierOutputTarget as BinaryClassifierOutputTarget
    from fastcam.model_targets import ClassifierOutputReST as ClassifierOutputReST
    from fastcam.model_targets import ClassifierOutputSoftmaxTarget as ClassifierOutputSoftmaxTarget
    from fastcam.model_targets import ClassifierOutputTarget as ClassifierOutputTarget
    from fastcam.model_targets import FasterRCNNBoxScoreTarget as FasterRCNNBoxScoreTarget
    from fastcam.model_targets import FinerWeightedTarget as FinerWeightedTarget
    from fastcam.model_targets import RawScoresOutputTarget as RawScoresOutputTarget
    from fastcam.model_targets import RegressionTarget as RegressionTarget
    from fastcam.model_targets import SemanticSegmentationTarget as SemanticSegmentationTarget
    from fastcam.model_targets import SimilarityToConceptTarget as SimilarityToConceptTarget
    from fastcam.model_targets import SoftmaxOutputTarget as SoftmaxOutputTarget
    from fastcam.report.page import write_report as write_report
    from fastcam.reshape_transforms import fasterrcnn_reshape_transform as fasterrcnn_reshape_transform
    from fastcam.reshape_transforms import swinT_reshape_transform as swinT_reshape_transform
    from fastcam.reshape_transforms import vit_reshape_transform as vit_reshape_transform
    from fastcam.visualize.attribution import Attribution as Attribution
    from fastcam.visualize.comparison import Comparison as Comparison
    from fastcam.visualize.comparison import compare as compare
    from fastcam.visualize.dreams import Dream as Dream
    from fastcam.visualize.dreams import deep_dream as deep_dream
    from fastcam.visualize.edges import sobel_cam as sobel_cam
    from fastcam.visualize.integrated import IntegratedGradients as IntegratedGradients
    from fastcam.visualize.inversion import Inversion as Inversion
    from fastcam.visualize.inversion import invert as invert
    from fastcam.visualize.maps import FeatureMaps as FeatureMaps
    from fastcam.visualize.maps import feature_maps as feature_maps
    from fastcam.visualize.maximization import Maximized as Maximized
    from fastcam.visualize.maximization import maximize as maximize
    from fastcam.visualize.objectives import Objective as Objective
    from fastcam.visualize.patches import TopPatches as TopPatches
    from fastcam.visualize.patches import top_patches as top_patches
    from fastcam.visualize.saliency import DeconvNet as DeconvNet
    from fastcam.visualize.saliency import GuidedBackprop as GuidedBackprop
    from fastcam.visualize.saliency import GuidedBackpropReLUModel as GuidedBackpropReLUModel
    from fastcam.visualize.saliency import GuidedGradCAM as GuidedGradCAM
    from fastcam.visualize.saliency import InputXGradient as InputXGradient
    from fastcam.visualize.saliency import Saliency as Saliency
    from fastcam.visualize.smoothgrad import SmoothGrad as SmoothGrad
    from fastcam.visualize.weights import kernel_figure as kernel_figure
    from fastcam.visualize.weights import layer_weights as layer_weights
    from fastcam.visualize.weights import plot_kernels as plot_kernels

__version__ = "0.1.0"

_WHERE = {
    "fastcam.methods": (
        *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM"),
        *("EigenCAM", "EigenGradCAM", "CAM", "AblationCAM", "ScoreCAM", "FasterScoreCAM", "SSCAM", "ISCAM", "GroupCAM"),
        *("ReciproCAM", "ViTReciproCAM", "ShapleyCAM", "SegEigenCAM", "SmoothGradCAMpp", "KPCA_CAM", "FEM"),
        *("RandomCAM", "FinerCAM", "RefineCAM", "SESS", "FullGrad", "SimpleFullGrad", "SmoothFullGrad"),
    ),
    "fastcam.methods.many": ("explain",),
    "fastcam.fast.settings": ("Optimize",),
    "fastcam.fast.agreement": ("Agreement",),
    "fastcam.dataset.attribute": ("attribute_dataset",),
    "fastcam.dataset.maps": ("open_maps", "Maps"),
    "fastcam.dataset.sources": ("ImageFiles",),
    "fastcam.dataset.map_batches": ("MapBatches",),
    "fastcam.report.page": ("write_report",),
    "fastcam.methods.factorization": ("DeepFeatureFactorization", "dff", "run_dff_on_image"),
    "fastcam.visualize.edges": ("sobel_cam",),
    "fastcam.visualize.dreams": ("deep_dream", "Dream"),
    "fastcam.visualize.inversion": ("invert", "Inversion"),
    "fastcam.methods.attention": ("LeGrad", "GradientRollout", "AttentionRollout"),
    "fastcam.reshape_transforms": ("vit_reshape_transform", "swinT_reshape_transform", "fasterrcnn_reshape_transform"),
    "fastcam.methods.ablation_layers": ("AblationLayer", "AblationLayerVit", "AblationLayerFasterRCNN"),
    "fastcam.visualize.patches": ("top_patches", "TopPatches"),
    "fastcam.visualize.maps": ("FeatureMaps", "feature_maps"),
    "fastcam.visualize.weights": ("layer_weights", "plot_kernels", "kernel_figure"),
    "fastcam.visualize.saliency": (
        *("Saliency", "InputXGradient", "GuidedBackprop", "DeconvNet", "GuidedGradCAM", "GuidedBackpropReLUModel"),
    ),
    "fastcam.visualize.smoothgrad": ("SmoothGrad",),
    "fastcam.visualize.integrated": ("IntegratedGradients",),
    "fastcam.visualize.attribution": ("Attribution",),
    "fastcam.visualize.comparison": ("compare", "Comparison"),
    "fastcam.visualize.maximization": ("maximize", "Maximized"),
    "fastcam.visualize.objectives": ("Objective",),
    "fastcam.model_targets": (
        *("ClassifierOutputTarget", "ClassifierOutputSoftmaxTarget"),
        *("ClassifierOutputReST", "BinaryClassifierOutputTarget"),
        *("SoftmaxOutputTarget", "RawScoresOutputTarget", "SemanticSegmentationTarget", "FasterRCNNBoxScoreTarget"),
        *("FinerWeightedTarget", "SimilarityToConceptTarget", "RegressionTarget"),
    ),
    "fastcam.layers": ("layer_table",),
    "fastcam.images": ("load_image", "preprocess_image", "denormalize", "check_contrast"),
    "fastcam.figures.overlays": ("overlay", "gradient_picture", "show_cam_on_image", "deprocess_image"),
    "fastcam.figures.factors": ("show_factorization_on_image",),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastcam' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
