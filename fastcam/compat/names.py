"""The modules of pytorch-grad-cam 1.5.7 and FlashTorch 0.1.3, the names in each, and where in fastcam a name is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MODULES = {  # parents before children
    "": "GradCAM FinerCAM ShapleyCAM FEM HiResCAM GradCAMElementWise AblationLayer AblationLayerVit "
    "AblationLayerFasterRCNN AblationCAM XGradCAM GradCAMPlusPlus ScoreCAM LayerCAM EigenCAM EigenGradCAM KPCA_CAM "
    "RandomCAM FullGrad GuidedBackpropReLUModel SegEigenCAM ActivationsAndGradients RefineCAM SESS "
    "DeepFeatureFactorization run_dff_on_image",
    "ablation_cam": "AblationCAM AblationLayer BaseCAM replace_layer_recursive",
    "ablation_cam_multilayer": "AblationCAM AblationLayer BaseCAM replace_layer_recursive",
    "ablation_layer": "AblationLayer AblationLayerVit AblationLayerFasterRCNN get_2d_projection",
    "activations_and_gradients": "ActivationsAndGradients",
    "base_cam": "BaseCAM ActivationsAndGradients ClassifierOutputTarget get_2d_projection scale_cam_image",
    "eigen_cam": "EigenCAM BaseCAM get_2d_projection",
    "eigen_grad_cam": "EigenGradCAM BaseCAM get_2d_projection",
    "feature_factorization": "",
    "feature_factorization.deep_feature_factorization": "DeepFeatureFactorization dff run_dff_on_image "
    "ActivationsAndGradients create_labels_legend scale_cam_image show_factorization_on_image",
    "fem": "FEM BaseCAM",
    "finer_cam": "FinerCAM DEFAULT_COMPARISON_CATEGORIES FinerWeightedTarget GradCAM",
    "fullgrad_cam": "FullGrad BaseCAM find_layer_predicate_recursive get_2d_projection "
    "scale_accross_batch_and_channels scale_cam_image",
    "grad_cam": "GradCAM BaseCAM",
    "grad_cam_elementwise": "GradCAMElementWise BaseCAM get_2d_projection",
    "grad_cam_plusplus": "GradCAMPlusPlus BaseCAM",
    "guided_backprop": "GuidedBackpropReLU GuidedBackpropReLUasModule GuidedBackpropReLUModel "
    "replace_all_layer_type_recursive",
    "hirescam": "HiResCAM BaseCAM get_2d_projection",
    "kpca_cam": "KPCA_CAM BaseCAM get_2d_projection_kernel",
    "layer_cam": "LayerCAM BaseCAM get_2d_projection",
    "metrics": "ARCC",  # as its documentation has it
    "metrics.arcc": "ARCC Coherency Complexity batch_pearson_coherency BaseCAM ROADCombined",
    "metrics.cam_mult_image": "CamMultImageConfidenceChange DropInConfidence IncreaseInConfidence "
    "multiply_tensor_with_cam PerturbationConfidenceMetric",
    "metrics.perturbation_confidence": "AveragerAcrossThresholds PerturbationConfidenceMetric "
    "RemoveLeastRelevantFirst RemoveMostRelevantFirst",
    "metrics.road": "NoisyLinearImputer ROADCombined ROADLeastRelevantFirst ROADLeastRelevantFirstAverage "
    "ROADMostRelevantFirst ROADMostRelevantFirstAverage neighbors_weights AveragerAcrossThresholds "
    "PerturbationConfidenceMetric RemoveLeastRelevantFirst RemoveMostRelevantFirst",
    "random_cam": "RandomCAM BaseCAM",
    "refine_cam": "RefineCAM GradCAMPlusPlus scale_cam_image",
    "score_cam": "ScoreCAM BaseCAM",
    "seg_eigen_cam": "SegEigenCAM BaseCAM get_2d_projection_with_sign_correction",
    "sess": "SESS sliding_window window_starts ClassifierOutputTarget GradCAM scale_cam_image",
    "shapley_cam": "ShapleyCAM BaseCAM ClassifierOutputTarget",
    "sobel_cam": "sobel_cam",
    "utils": "deprocess_image get_2d_projection",
    "utils.find_layers": "find_layer_predicate_recursive find_layer_types_recursive "
    "replace_all_layer_type_recursive replace_layer_recursive",
    "utils.image": "create_labels_legend deprocess_image preprocess_image scale_accross_batch_and_channels "
    "scale_cam_image show_cam_on_image show_factorization_on_image",
    "utils.model_targets": "BinaryClassifierOutputTarget ClassifierOutputReST ClassifierOutputSoftmaxTarget "
    "ClassifierOutputTarget FasterRCNNBoxScoreTarget FinerWeightedTarget RawScoresOutputTarget "
    "SemanticSegmentationTarget SoftmaxOutputTarget",
    "utils.reshape_transforms": "fasterrcnn_reshape_transform swinT_reshape_transform vit_reshape_transform",
    "utils.svd_on_activations": "get_2d_projection get_2d_projection_kernel get_2d_projection_with_sign_correction",
    "xgrad_cam": "XGradCAM BaseCAM",
}

_IN = {  # all other names are in fastcam itself
    "fastcam.compat.metrics": "RemoveMostRelevantFirst RemoveLeastRelevantFirst ROADMostRelevantFirst "
    "ROADLeastRelevantFirst",
    "fastcam.compat.base_cam": "BaseCAM",
    "fastcam.compat.hooks": "ActivationsAndGradients",
    "fastcam.compat.cams": "AblationCAM EigenCAM EigenGradCAM FEM FullGrad GradCAM GradCAMElementWise GradCAMPlusPlus "
    "HiResCAM KPCA_CAM LayerCAM RandomCAM ScoreCAM SegEigenCAM ShapleyCAM XGradCAM",
    "fastcam.compat.combined": "DEFAULT_COMPARISON_CATEGORIES FinerCAM RefineCAM SESS",
    "fastcam.compat.guided": "GuidedBackpropReLU GuidedBackpropReLUModel GuidedBackpropReLUasModule",
    "fastcam.compat.find_layers": MODULES["utils.find_layers"],
    "fastcam.compat.projections": MODULES["utils.svd_on_activations"],
    "fastcam.compat.scaling": "scale_accross_batch_and_channels scale_cam_image",
    "fastcam.figures.factors": "create_labels_legend",
    "fastcam.methods.sess": "sliding_window window_starts",
    **{f"fastcam.metrics.{m}": MODULES[f"metrics.{m}"] for m in ("arcc", "cam_mult_image")},
    "fastcam.metrics.perturbation_confidence": MODULES["metrics.perturbation_confidence"],
    "fastcam.metrics.road": "NoisyLinearImputer ROADCombined ROADLeastRelevantFirst ROADLeastRelevantFirstAverage "
    "ROADMostRelevantFirst ROADMostRelevantFirstAverage neighbors_weights",
}
PLACES = {name: place for place, names in reversed(_IN.items()) for name in names.split()}  # the first counts

_IMAGES = "load_image apply_transforms denormalize standardize_and_clip format_for_plotting"
_BACKPROP = "Backprop denormalize format_for_plotting standardize_and_clip"
_ASCENT = "GradientAscent apply_transforms format_for_plotting load_image standardize_and_clip"
FLASHTORCH = {
    "": "__version__",
    "saliency": _BACKPROP,
    "saliency.backprop": _BACKPROP,
    "activmax": _ASCENT,
    "activmax.gradient_ascent": _ASCENT,
    "utils": f"{_IMAGES} ImageNetIndex",
    "utils.imagenet": "ImageNetIndex",
    "utils.resources": "",
}
_FLASHTORCH_IN = {
    "": "__version__",
    ".backprop": "Backprop",
    ".gradient_ascent": "GradientAscent",
    ".images": _IMAGES,
    ".imagenet": "ImageNetIndex",
}


class Package(NamedTuple):
    """A package that fastcam stands in for.

    release   the one that the names are of
    modules   the names in each of its modules
    places    the module of fastcam in which a name is; all others are in fastcam itself
    own       its modules whose functions users replace, which their classes must see: fastcam's, as they are
    """

    release: str
    modules: Mapping[str, str]
    places: Mapping[str, str]
    own: Mapping[str, str]


PACKAGES = {
    "pytorch_grad_cam": Package("pytorch-grad-cam 1.5.7", MODULES, PLACES, {"base_cam": "fastcam.compat.base_cam"}),
    "flashtorch": Package(
        "FlashTorch 0.1.3",
        FLASHTORCH,
        {name: f"fastcam.compat.flashtorch{m}" for m, names in _FLASHTORCH_IN.items() for name in names.split()},
        {
            "saliency.backprop": "fastcam.compat.flashtorch.backprop",
            "activmax.gradient_ascent": "fastcam.compat.flashtorch.gradient_ascent",
        },
    ),
}
