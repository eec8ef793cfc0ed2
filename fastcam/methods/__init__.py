"""The methods, by the name they have in the command line.

`ViTReciproCAM`, for tokens, is not in it yet.
"""

from fastcam.methods.ablation import AblationCAM
from fastcam.methods.activation import FEM, KPCA_CAM, EigenCAM, RandomCAM
from fastcam.methods.attention import AttentionRollout, GradientRollout, LeGrad
from fastcam.methods.base import BaseCAM
from fastcam.methods.combine import FinerCAM, RefineCAM
from fastcam.methods.fullgrad import FullGrad, SimpleFullGrad, SmoothFullGrad
from fastcam.methods.gradient import (
    CAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    SegEigenCAM,
    XGradCAM,
)
from fastcam.methods.masking import ISCAM, SSCAM, FasterScoreCAM, GroupCAM, ScoreCAM
from fastcam.methods.reciprocal import ReciproCAM
from fastcam.methods.reciprocal import ViTReciproCAM as ViTReciproCAM
from fastcam.methods.sess import SESS
from fastcam.methods.shapley import ShapleyCAM
from fastcam.methods.smooth import SmoothGradCAMpp

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
    "shapleycam": ShapleyCAM,
    "smoothgradcam++": SmoothGradCAMpp,
    "segeigencam": SegEigenCAM,
    "kpcacam": KPCA_CAM,
    "fem": FEM,
    "randomcam": RandomCAM,
    "finercam": FinerCAM,
    "refinecam": RefineCAM,
    "sess": SESS,
    "fullgrad": FullGrad,
    "simplefullgrad": SimpleFullGrad,
    "smoothfullgrad": SmoothFullGrad,
}
ATTENTION: dict[str, type[BaseCAM]] = {  # for transformers
    "legrad": LeGrad,
    "gradientrollout": GradientRollout,
    "attentionrollout": AttentionRollout,
}
