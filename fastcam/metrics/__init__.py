"""Is a map faithful? What the model says when pixels go, where the map points, how it changes with the model.

The classes have pytorch-grad-cam's names, arguments and numbers; the functions take (model, x, maps, targets) and give
tensors.
"""

from fastcam.metrics.arcc import ARCC as ARCC
from fastcam.metrics.arcc import Coherency as Coherency
from fastcam.metrics.arcc import Complexity as Complexity
from fastcam.metrics.arcc import adcc as adcc
from fastcam.metrics.arcc import batch_pearson_coherency as batch_pearson_coherency
from fastcam.metrics.arcc import pearson as pearson
from fastcam.metrics.cam_mult_image import CamMultImageConfidenceChange as CamMultImageConfidenceChange
from fastcam.metrics.cam_mult_image import DropInConfidence as DropInConfidence
from fastcam.metrics.cam_mult_image import IncreaseInConfidence as IncreaseInConfidence
from fastcam.metrics.cam_mult_image import multiply_tensor_with_cam as multiply_tensor_with_cam
from fastcam.metrics.confidence import average_drop as average_drop
from fastcam.metrics.confidence import average_gain as average_gain
from fastcam.metrics.confidence import average_increase as average_increase
from fastcam.metrics.curves import area_under as area_under
from fastcam.metrics.curves import deletion_auc as deletion_auc
from fastcam.metrics.curves import deletion_curve as deletion_curve
from fastcam.metrics.curves import insertion_auc as insertion_auc
from fastcam.metrics.curves import insertion_curve as insertion_curve
from fastcam.metrics.imputation import NoisyLinearImputer as NoisyLinearImputer
from fastcam.metrics.localisation import box_share as box_share
from fastcam.metrics.localisation import energy_pointing_game as energy_pointing_game
from fastcam.metrics.localisation import grid_pointing_game as grid_pointing_game
from fastcam.metrics.localisation import image_grids as image_grids
from fastcam.metrics.localisation import pointing_game as pointing_game
from fastcam.metrics.perturbation_confidence import AveragerAcrossThresholds as AveragerAcrossThresholds
from fastcam.metrics.perturbation_confidence import PerturbationConfidenceMetric as PerturbationConfidenceMetric
from fastcam.metrics.perturbation_confidence import RemoveLeastRelevantFirst as RemoveLeastRelevantFirst
from fastcam.metrics.perturbation_confidence import RemoveMostRelevantFirst as RemoveMostRelevantFirst
from fastcam.metrics.road import ROADCombined as ROADCombined
from fastcam.metrics.road import ROADLeastRelevantFirst as ROADLeastRelevantFirst
from fastcam.metrics.road import ROADLeastRelevantFirstAverage as ROADLeastRelevantFirstAverage
from fastcam.metrics.road import ROADMostRelevantFirst as ROADMostRelevantFirst
from fastcam.metrics.road import ROADMostRelevantFirstAverage as ROADMostRelevantFirstAverage
from fastcam.metrics.sanity import Randomised as Randomised
from fastcam.metrics.sanity import model_randomisation as model_randomisation
from fastcam.metrics.sanity import spearman as spearman
from fastcam.metrics.shape import centre_gaussian_maps as centre_gaussian_maps
from fastcam.metrics.shape import random_maps as random_maps
from fastcam.metrics.shape import sparseness as sparseness
