"""Labels by the model itself, where gold clips show that it can be believed."""

from lsb.pseudo.agreement import LabelledClips
from lsb.pseudo.choice import PSEUDO_LABELS, PseudoLabels, pseudo_label
from lsb.pseudo.config import PseudoConfig
from lsb.pseudo.rule import LabelRule

__all__ = [
    "PSEUDO_LABELS",
    "LabelRule",
    "LabelledClips",
    "PseudoConfig",
    "PseudoLabels",
    "pseudo_label",
]
