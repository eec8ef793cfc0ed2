"""The methods, by the name they have in the command line; `ViTReciproCAM`, for tokens, is not in it yet."""

from fastcam.methods.ablation import AblationCAM
from fastcam.methods.attention import AttentionRollout, GradientRollout, LeGrad
from fastcam.methods.base import BaseCAM
from fastcam.methods.factor import EigenCAM
from fastcam.methods.gradient import (
    CAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from fastcam.methods.masking import ISCAM, SSCAM, FasterScoreCAM, GroupCAM, ScoreCAM
from fastcam.methods.reciprocal import ReciproCAM
from fastcam.methods.reciprocal import ViTReciproCAM as ViTReciproCAM

METHODS: dict[str, type[BaseCAM]] = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "xgradcam": XGradCAM,
    "hirescam": HiResCAM,
    "gradcamelementwise": GradCAMElementWise,
    "layercam": LayerCAM,
    "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
    "cam": CAM,
    "ablationcam": AblationCAM,
    "scorecam": ScoreCAM,
    "fasterscorecam": FasterScoreCAM,
    "sscam": SSCAM,
    "iscam": ISCAM,
    "groupcam": GroupCAM,
    "reciprocam": ReciproCAM,
}
ATTENTION: dict[str, type[BaseCAM]] = {  # for transformers
    "legrad": LeGrad,
    "gradientrollout": GradientRollout,
    "attentionrollout": AttentionRollout,
}
