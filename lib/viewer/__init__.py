"""To look at a scan in a notebook: slices with masks side by side, a playground of prompts, the organs in three dimensions."""

from .playground import Answer, EncodedSlice, Playground
from .scene import TRUTH, Scene, scene_of, store_of
from .slices import Viewer
from .solid import Solid

__all__ = ["TRUTH", "Answer", "EncodedSlice", "Playground", "Scene", "Solid", "Viewer", "scene_of", "store_of"]
