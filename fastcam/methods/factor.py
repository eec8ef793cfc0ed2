"""Methods that factorise the activations alone; no class, no gradient."""

from __future__ import annotations

from torch import Tensor

from fastcam import ops
from fastcam.methods.base import BaseCAM
from fastcam.record import Run
from fastcam.targets import Targets, are_callables, class_indices, logits_of


class EigenCAM(BaseCAM):
    """EigenCAM (Muhammad and Yeasin, IJCNN 2020, arXiv:2008.00299).

    map_n = (X_n - mean X) · v, X_n the channel vector at position n, v their first principal direction

    v has no sign of its own: by default the map correlates positively with the mean over channels (on a tie its
    largest absolute value is positive); `sign="lapack"` gives pytorch-grad-cam's choice. Targets do not matter.
    """

    uses_gradients = False
    class_discriminative = False

    def low_maps(self, run: Run, targets: Targets, eigen_smooth: bool) -> list[Tensor]:
        if run.output is not None and targets is not None and not are_callables(targets):
            class_indices(targets, logits_of(run.output))  # a mistake in them is an error here as elsewhere
        return [ops.principal_component(A, self.sign) for A in self.spatial(run, run.activations)]
