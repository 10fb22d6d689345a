"""Model version v2, behind the four scripts' -mv v2. The door: what the scripts call of it."""

from v2.config import read_classifier, read_encoder
from v2.stages import embed, load_classifier, load_judge, pretrain, train

__all__ = ["embed", "load_classifier", "load_judge", "pretrain", "read_classifier", "read_encoder", "train"]
