"""To look at a scan in a notebook: slices with masks side by side, a playground of prompts, organs in 3-D."""

import base64
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
import torch
from ipyniivue import NiiVue, SliceType, Volume
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from lib.clipseg import TextPromptedSegmenter
from lib.config import ClipSegSettings
from lib.metrics import dice
from lib.organs import BY_KEY, KEYS, PROMPTS, labelled
from lib.volumes import resize
from lib.windows import store_window
from tools.lettering import write
from tools.segment import Segmentation, colours_of, store_of

TRUTH, FALSE, NOTHING = "ground truth", "#00ffff", "#999999"  # no organ has the colour of false positives
MODEL = "as the model sees it"
CT_WINDOWS_HU = {  # from black to white
    MODEL: ClipSegSettings.ct_window_hu, "soft tissue": (-160.0, 240.0), "bone": (-500.0, 1300.0),
}


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan and what is said of it.

    voxels: (X, Y, Z) as stored, HU in a CT. names: {label: organ or other text}. labels: {panel: (X, Y, Z)
    uint8}, the ground truth's under TRUTH. known: labels that it speaks of; others cannot be called false.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    modality: str
    names: dict[int, str]
    labels: dict[str, np.ndarray]
    known: tuple[int, ...] = ()

    @property
    def colours(self) -> dict[int, str]:
        """{label: colour}."""
        return colours_of([*self.names])

    @property
    def windows(self) -> dict[str, tuple[float, float]]:
        """Grey windows to choose from, (low, high): in HU for CT, the model's percentiles for MR."""
        if self.modality == "CT":
            return CT_WINDOWS_HU
        return {MODEL: tuple(np.percentile(self.voxels[::2, ::2], ClipSegSettings.mr_percentiles).tolist())}


def scene_of(
    voxels: np.ndarray, found: Mapping[str, Segmentation], truth: np.ndarray | None = None,
    label_map: str = "FLARE22",
) -> Scene:
    """The scene of a scan (X, Y, Z) and of segmentations by the same prompts (else ValueError).

    truth: (X, Y, Z) of our label ids; label_map: its data set's, which says what organs it labels.
    """
    if len({one.prompts for one in found.values()}) != 1:
        raise ValueError("The segmentations answer different prompts: show those of the same together.")
    first = next(iter(found.values()))
    labels = {panel: one.grid.to_canonical(one.labels) for panel, one in found.items()}
    scene = Scene(voxels, first.grid.spacing_mm, first.modality, first.names, labels)
    if truth is None:
        return scene
    known = tuple(label for label, name in first.names.items() if name in labelled(label_map))
    return replace(scene, labels={TRUTH: truth} | labels, known=known)


def palette(colours: Mapping[int, str]) -> np.ndarray:
    """(256, 3) uint8 colour of each label."""
    table = np.zeros((256, 3), np.uint8)
    table[[*colours]] = (to_rgba_array([*colours.values()])[:, :3] * 255).round()
    return table


def marked(grey: np.ndarray, labels: np.ndarray, colours: Mapping[int, str], false: Any = None) -> np.ndarray:
    """Grey (rows, columns) and labels -> (rows, columns, 3) uint8, filled and outlined, `false` ones cyan.

    Painted as pixels: contours would take more than a second a slice.
    """
    ink, opacity = palette(colours)[labels].astype(np.float32), np.where(labels > 0, 0.4, 0.0)
    beside = {"footprint": ndimage.generate_binary_structure(2, 1), "mode": "nearest"}
    edge = ndimage.maximum_filter(labels, **beside) != ndimage.minimum_filter(labels, **beside)
    opacity[(labels > 0) & edge] = 1  # the outline
    if false is not None:
        ink[false], opacity[false] = np.multiply(to_rgb(FALSE), 255), 0.75
    return (ink * opacity[..., None] + grey[..., None] * (1 - opacity[..., None])).round().astype(np.uint8)


def _panels(pictures: Mapping[str, np.ndarray], aspect: float, legend: Mapping[str, str]) -> Figure:
    """Pictures (rows, columns, 3) side by side, a title above each and a legend of {name: colour} below."""
    (rows, columns, _), count = next(iter(pictures.values())).shape, len(pictures)
    high = 3.3 * rows * aspect / columns + 0.3 + 0.18 * -(-len(legend) // (2 * count))
    figure = Figure(figsize=(3.4 * count, high), dpi=96, layout="constrained")
    for place, (title, picture) in enumerate(pictures.items(), 1):
        axis = figure.add_subplot(1, count, place)
        axis.imshow(picture, aspect=aspect, interpolation="nearest")
        write(axis.set_title("", fontsize=9, loc="left", pad=3), title)
        axis.set_axis_off()
    keys = [Patch(color=colour, label="-") for colour in legend.values()]
    below = figure.legend(handles=keys, loc="outside lower left", ncols=2 * count, fontsize=7, frameon=False)
    for text, name in zip(below.get_texts(), legend, strict=True):
        write(text, name)
    return figure


def draw(scene: Scene, z: int, window: tuple[float, float], shown: Collection[int]) -> Figure:
    """Slice z, panel beside panel: the patient's right on the left, the front up.

    window: grey values from black to white. shown: labels to mark; what is not in the truth is cyan.
    """
    low, high = window
    grey = ((scene.voxels[:, :, z].T.astype(np.float32) - low) * (255 / max(high - low, 1e-6))).clip(0, 255)
    kept, known = (np.isin(np.arange(256), [*labels]) for labels in (shown, scene.known))
    pictures: dict[str, np.ndarray] = {}
    for panel, volume in scene.labels.items():
        labels, wrong = volume[:, :, z].T, None
        if panel != TRUTH and TRUTH in scene.labels:
            wrong = (kept & known)[labels] & (labels != scene.labels[TRUTH][:, :, z].T)
        title = panel if pictures else f"{panel}, slice {z + 1} of {volume.shape[2]}"
        pictures[title] = marked(grey, labels * kept[labels], scene.colours, wrong)
    legend = {name: scene.colours[label] for label, name in scene.names.items() if label in shown}
    legend |= {"false": FALSE} if scene.known else {}
    return _panels(pictures, scene.spacing_mm[1] / scene.spacing_mm[0], legend)


class Pictured(widgets.VBox):
    """Widgets around a figure. Where no widget runs (an executed notebook, HTML), the first figure stands."""

    def __init__(self, controls: list[widgets.Widget], alt: str) -> None:
        self.picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.still, self.alt = b"", alt
        super().__init__([*controls, self.picture])

    def show(self, figure: Figure) -> None:
        """Puts another figure in the place of the one that is shown."""
        figure.savefig(buffer := io.BytesIO(), format="png", metadata={"Software": None})
        self.picture.value = buffer.getvalue()
        self.still = self.still or self.picture.value

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle |= {"image/png": base64.b64encode(self.still).decode(), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


class Viewer(Pictured):
    """A scan, slice by slice: ground truth and predictions side by side, false positives in cyan."""

    def __init__(self, scene: Scene) -> None:
        count = np.array([len(np.unique(plane)) for plane in next(iter(scene.labels.values())).T])
        fullest = np.flatnonzero(count == count.max())  # slices with most labels, in the truth if known
        start = int(fullest[len(fullest) // 2])
        self.scene, self.windows, names = scene, scene.windows, scene.names
        self.slice = widgets.IntSlider(start, 0, len(count) - 1, description="slice")
        self.window = widgets.Dropdown(options=[*self.windows], description="window")
        organs = {"options": [(name, label) for label, name in names.items()], "value": [*names]}
        self.organs = widgets.SelectMultiple(**organs, rows=4, description="organs")
        alt = f"Slice {start + 1} of a scan with its organs in colours: {', '.join(scene.labels)}."
        super().__init__([widgets.HBox([widgets.VBox([self.slice, self.window]), self.organs])], alt)
        for control in (self.slice, self.window, self.organs):
            control.observe(self._draw, "value")
        self._draw()

    def _draw(self, _change: Any = None) -> None:
        self.show(draw(self.scene, self.slice.value, self.windows[self.window.value], self.organs.value))


class Playground(Pictured):
    """A field for a prompt and a slider; below, its mask, and its likeness to the 13 trained prompts.

    A slice is encoded once with its neighbours; each prompt then costs the text encoder and the decoder.
    settings: the model's. scan: one that was segmented. start, prompt: the first ones.
    """

    def __init__(
        self, model: TextPromptedSegmenter, settings: ClipSegSettings, scan: Segmentation, start: int,
        prompt: str = "lien",
    ) -> None:
        self.model, self.settings, self.scan = model.eval(), settings, scan
        self.store = store_of(scan.grey, scan.grid, scan.modality, settings)
        late: dict[str, Any] = {"continuous_update": False}
        self.prompt = widgets.Text(prompt, description="prompt", **late)
        self.slice = widgets.IntSlider(start, 0, scan.grey.shape[2] - 1, description="slice", **late)
        alt = f"The mask that “{prompt}” is given, and bars of its likeness to the 13 trained prompts."
        super().__init__([widgets.HBox([self.prompt, self.slice])], alt)
        self.slice.observe(self._encode, "value")
        self.prompt.observe(self._draw, "value")
        self._encode()

    @torch.inference_mode()
    def _encode(self, _change: Any = None) -> None:
        device, window = self.model.mean.device, store_window(self.store, self.slice.value, self.settings)
        needed, places = np.unique(window, return_inverse=True)
        encoded = self.model.encode_slices(torch.from_numpy(self.store.slices(needed)).to(device))
        self.activations, _ = self.model.adapt(encoded, torch.from_numpy(places[None]).to(device))
        self.known = self._ask(PROMPTS)
        self._draw()

    @torch.inference_mode()
    def _ask(self, prompts: Collection[str]) -> tuple[torch.Tensor, np.ndarray]:
        """P prompts -> text features (P, J) and probabilities (P, S, S)."""
        text = self.model.encode_text([*prompts])
        first = torch.zeros(len(text), dtype=torch.long, device=text.device)
        return text, self.model.decode(self.activations, text, first).sigmoid().float().cpu().numpy()

    def likeness(self, prompt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities (S, S); with each organ's prompt, the text's cosine and the mask's Dice (13,)."""
        (text, [probability]), (known, masks) = self._ask([prompt]), self.known
        mask, masks = probability > 0.5, masks > 0.5
        overlaps = [dice(int((mask & other).sum()), int(mask.sum()), int(other.sum())) for other in masks]
        return probability, torch.cosine_similarity(text, known).cpu().numpy(), np.nan_to_num(overlaps)

    def _draw(self, _change: Any = None) -> None:
        small, cosines, overlaps = self.likeness(self.prompt.value)
        grey, spacing = self.scan.grey[:, :, self.slice.value].T, self.scan.grid.spacing_mm
        mask = (resize(small[None], grey.shape[0], grey.shape[1], nearest=False)[0] > 0.5).astype(np.uint8)
        colours = [BY_KEY[key].colour for key in KEYS]
        figure = Figure(figsize=(9.6, 3.4), dpi=96, layout="constrained")
        picture, *bars = figure.subplots(1, 3)
        nearest = colours[overlaps.argmax()] if overlaps.max() > 0 else NOTHING
        picture.imshow(marked(grey, mask, {1: nearest}), aspect=spacing[1] / spacing[0])
        shown = f"”, slice {self.slice.value + 1}"
        write(picture.set_title("", fontsize=9), f"“{self.prompt.value}", shown)
        picture.set_axis_off()
        parts = ("cosine of the text", cosines), ("Dice of the mask", overlaps)
        for axis, (title, values) in zip(bars, parts, strict=True):
            edges = ["black" if value == values.max() > 0 else "none" for value in values]
            axis.barh(KEYS, values, color=colours, edgecolor=edges)
            axis.set_title(title, fontsize=9)
            axis.set_xlim(min(0, *values), 1)
            axis.tick_params(labelsize=7, labelleft=axis is bars[0], left=False)
            axis.invert_yaxis()
        self.show(figure)


def front_view(scene: Scene, panel: str) -> np.ndarray:
    """(Z, X, 3) uint8: organs from the front, right on the left; darker where they turn away or lie deep."""
    labels, (x_mm, y_mm, z_mm) = scene.labels[panel], scene.spacing_mm
    depth = np.where((labels > 0).any(1), (labels > 0).argmax(1), labels.shape[1] - 1)  # (X, Z)
    label = np.take_along_axis(labels, depth[:, None], 1)[:, 0]
    across, up = np.gradient(np.pad(depth, 1, mode="edge") * y_mm, x_mm, z_mm)
    steep = np.sqrt(1 + across**2 + up**2)[1:-1, 1:-1, None]
    light = (0.4 + 0.6 / steep) * (1 - 0.3 * depth / labels.shape[1])[..., None]
    shaded = np.where(label[..., None] > 0, palette(scene.colours)[label] * light, 255)
    return shaded.astype(np.uint8).transpose(1, 0, 2)[::-1]


class Solid(Pictured):
    """The last panel's organs to turn, by NiiVue; printed, all panels from the front."""

    def __init__(self, scene: Scene) -> None:
        super().__init__([], f"Organs from the front: {', '.join(scene.labels)}.")
        views = {f"{panel}, from the front": front_view(scene, panel) for panel in scene.labels}
        legend = {name: scene.colours[label] for label, name in scene.names.items()}
        self.show(_panels(views, scene.spacing_mm[2] / scene.spacing_mm[0], legend))
        affine = np.diag([*(np.array(scene.spacing_mm) * (-1, -1, 1)), 1.0])  # our axes are LPS, NIfTI's RAS
        data = nib.Nifti1Image([*scene.labels.values()][-1], affine).to_bytes()
        volume = Volume(data=data, name="organs.nii", colorbar_visible=False)
        colours, shown = palette(scene.colours).T.tolist(), [255 * (i in scene.names) for i in range(256)]
        volume.set_colormap_label(dict(zip("RGBA", (*colours, shown), strict=True)))
        canvas = NiiVue(height=420, back_color=(1.0, 1.0, 1.0, 1.0))
        canvas.set_slice_type(SliceType.RENDER)
        canvas.load_volumes([volume])
        self.children = [canvas]
