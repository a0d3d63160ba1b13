"""Which tensor is which layer and part of a decoder, told from its name; knows no torch."""

from evomerge.architectures.places import Place, place
from evomerge.architectures.rules import END_PARTS, LAYER_PARTS, PARTS, EndPart, LayerPart, Part

__all__ = ["END_PARTS", "LAYER_PARTS", "PARTS", "EndPart", "LayerPart", "Part", "Place", "place"]
