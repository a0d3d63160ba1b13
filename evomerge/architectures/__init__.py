"""Which tensor is which layer and part of a decoder, told from its name; knows no torch."""

from evomerge.architectures.places import (
    Place,
    at_layer,
    check_scalable,
    layers_module,
    place,
    writes_to_residual,
)
from evomerge.architectures.rules import END_PARTS, LAYER_PARTS, PARTS, EndPart, LayerPart, Part

__all__ = [
    "END_PARTS",
    "LAYER_PARTS",
    "PARTS",
    "EndPart",
    "LayerPart",
    "Part",
    "Place",
    "at_layer",
    "check_scalable",
    "layers_module",
    "place",
    "writes_to_residual",
]
