"""Sizes of the feature maps: see `build`."""
from common.models.build import describe, named_maps

__all__ = ["describe", "named_maps"]
