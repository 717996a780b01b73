"""The organs in three dimensions: NiiVue, to turn and to zoom, where it is installed; their front view as a picture everywhere."""

from importlib.util import find_spec
from typing import Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw

from .paint import GAP, TITLE, font, legend, palette, panel_size
from .scene import Scene
from .slices import Pictured

MISSING = "The 3-D view needs ipyniivue: run `pip install ipyniivue` and restart the kernel. Here is the view from the front."


def front_view(scene: Scene, panel: str) -> Image.Image:
    """The organs seen from the patient's front, head up, right side on the left; darker where they turn away and where they lie deep."""
    labels, (x_mm, y_mm, z_mm) = scene.labels[panel], scene.spacing_mm
    depth = np.where((labels > 0).any(1), (labels > 0).argmax(1), labels.shape[1] - 1)  # (X, Z)
    label = np.take_along_axis(labels, depth[:, None], 1)[:, 0]
    steps = [(axis, mm) for axis, mm in enumerate((x_mm, z_mm)) if depth.shape[axis] > 1]
    steepness = sum((np.gradient(depth * y_mm, mm, axis=axis) ** 2 for axis, mm in steps), np.zeros(depth.shape))
    light = (0.4 + 0.6 / np.sqrt(1 + steepness)) * (1 - 0.3 * depth / labels.shape[1])
    rgb = palette(scene.colours)[label]
    shaded = np.where(label[..., None] > 0, rgb * light[..., None], 255).astype(np.uint8)
    size = panel_size(labels.shape[0] * x_mm, labels.shape[2] * z_mm)
    return Image.fromarray(np.ascontiguousarray(shaded.transpose(1, 0, 2)[::-1])).resize(size, Image.Resampling.BICUBIC)


def front_views(scene: Scene) -> Image.Image:
    """`front_view` of every panel, side by side, with a legend."""
    views = {panel: front_view(scene, panel) for panel in scene.labels}
    width, height = next(iter(views.values())).size
    total = (width + GAP) * len(views) - GAP
    keys = legend([(name, scene.colours[label]) for label, name in scene.names.items()], total)
    page = Image.new("RGB", (total, TITLE + height + GAP + keys.height), "white")
    for place, (panel, view) in enumerate(views.items()):
        ImageDraw.Draw(page).text((place * (width + GAP) + 2, 3), f"{panel}, from the front", "black", font())
        page.paste(view, (place * (width + GAP), TITLE))
    page.paste(keys, (0, TITLE + height + GAP))
    return page


def _volume(scene: Scene, panel: str) -> Any:
    """The panel's label map for NiiVue, in the colours of the organs."""
    from ipyniivue import Volume

    affine = np.diag([*(np.array(scene.spacing_mm) * (-1, -1, 1)), 1.0])  # our axes are LPS, NIfTI's RAS
    volume = Volume(data=nib.Nifti1Image(scene.labels[panel], affine).to_bytes(), name=f"{panel}.nii", colorbar_visible=False)
    red, green, blue = palette(scene.colours).T.tolist()
    shown = [255 * (label in scene.names) for label in range(256)]
    volume.set_colormap_label({"R": red, "G": green, "B": blue, "A": shown, "labels": [scene.names.get(i, "") for i in range(256)]})
    return volume


class Solid(Pictured):
    """A panel's organs to turn with the mouse; without ipyniivue a sentence that says so, and the view from the front."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.panel = widgets.Dropdown(options=list(scene.labels), value=list(scene.labels)[-1], description="organs of")
        super().__init__([], f"Organs from the front: {', '.join(scene.labels)}.")
        self.show(front_views(scene))
        if find_spec("ipyniivue") is None:
            self.children = [widgets.Label(MISSING), self.picture]
            return
        from ipyniivue import NiiVue, SliceType

        self.canvas = NiiVue(height=420, back_color=(1.0, 1.0, 1.0, 1.0), show_3d_crosshair=False)
        self.canvas.set_slice_type(SliceType.RENDER)
        self.canvas.load_volumes([_volume(scene, self.panel.value)])
        self.panel.observe(lambda change: self.canvas.load_volumes([_volume(scene, change["new"])]), "value")
        self.children = [self.panel, self.canvas]
