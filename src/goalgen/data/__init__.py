"""Goals: where they come from, how they become tensors, and in which order they are visited."""

from goalgen.data.levels import Share, augment_flip, augment_shift, binarize_images, from_unit, to_bytes, to_unit
from goalgen.data.sets import BatchOrder, ImageSet, Splits
from goalgen.data.sources import load_data

__all__ = [
    "BatchOrder",
    "ImageSet",
    "Share",
    "Splits",
    "augment_flip",
    "augment_shift",
    "binarize_images",
    "from_unit",
    "load_data",
    "to_bytes",
    "to_unit",
]
