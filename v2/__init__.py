"""Model version v2, behind the scripts' -mv v2. The door: what the scripts call of it."""

from v2.config import read_classifier, read_encoder
from v2.stages import load_classifier, load_judge, train

__all__ = ["load_classifier", "load_judge", "read_classifier", "read_encoder", "train"]
