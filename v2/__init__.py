"""Model version v2, behind the scripts' -mv v2. The door: what the scripts call of it."""

from bookkeeping import configs
from v2.config import read_classifier, read_encoder
from v2.stages import load_classifier, load_judge, train

configs.READERS["v2"] = read_encoder, read_classifier  # for who reads a version's configuration by its name

__all__ = ["load_classifier", "load_judge", "read_classifier", "read_encoder", "train"]
