"""To look at a scan in a notebook: slices with masks side by side, a playground of prompts, organs in 3-D."""

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import nibabel as nib
import numpy as np
import torch
from ipyniivue import NiiVue, SliceType, Volume
from matplotlib.axes import Axes
from matplotlib.colors import LightSource, to_rgba, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from lib.clipseg import TextPromptedSegmenter
from lib.config import ClipSegSettings
from lib.organs import BY_KEY, KEYS, PROMPTS
from lib.volumes import resize
from lib.windows import store_window, window_mm
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


def palette(colours: Mapping[int, str]) -> np.ndarray:
    """(256, 4) RGBA from 0 to 1 of each label, transparent where it has no colour."""
    table = np.zeros((256, 4))
    table[[*colours]] = to_rgba_array([*colours.values()])
    return table


def paint(axis: Axes, grey: np.ndarray, labels: np.ndarray, colours: Mapping[int, str], aspect: float,
          window: tuple[float, float] = (0, 255), false: np.ndarray | None = None) -> None:
    """Draws grey values and label ids (rows, columns), filled and outlined, and pixels that are `false` cyan.

    As pictures: contours would take more than a second a slice.
    """
    cross = ndimage.generate_binary_structure(2, 1)
    edge = ndimage.morphological_gradient(labels, footprint=cross) > 0
    marked = palette(colours)[labels]
    marked[..., 3] *= np.where(edge, 1, 0.4)
    if false is not None:
        marked[false] = to_rgba(FALSE, 0.75)
    look: dict[str, Any] = {"aspect": aspect, "interpolation": "nearest"}
    axis.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], **look)
    axis.imshow(marked, **look)
    axis.set_axis_off()


def _panels(titles: Sequence[str], legend: Mapping[str, str]) -> tuple[Figure, list[Axes]]:
    """Axes side by side with their titles, and a legend of {name: colour} below."""
    figure = Figure(figsize=(3.4 * len(titles), 4), dpi=96, layout="constrained")
    axes = [figure.add_subplot(1, len(titles), place) for place in range(1, len(titles) + 1)]
    for axis, title in zip(axes, titles, strict=True):
        write(axis.set_title("", fontsize=9, loc="left", pad=3), title)
    keys, columns = [Patch(color=colour, label="-") for colour in legend.values()], 2 * len(titles)
    below = figure.legend(handles=keys, loc="outside lower left", ncols=columns, fontsize=7, frameon=False)
    for text, name in zip(below.get_texts(), legend, strict=True):
        write(text, name)
    return figure, axes


def draw(scene: Scene, z: int, window: tuple[float, float], shown: Collection[int]) -> Figure:
    """Slice z, panel beside panel: the patient's right on the left, the front up.

    window: grey values from black to white. shown: labels to mark; what is not in the truth is cyan.
    """
    colours = {label: colour for label, colour in scene.colours.items() if label in shown}
    legend = {scene.names[label]: colour for label, colour in colours.items()}
    first, *others = scene.labels
    title = f"{first}, slice {z + 1} of {scene.voxels.shape[2]}"
    figure, axes = _panels([title, *others], legend | ({"false": FALSE} if scene.known else {}))
    for axis, (panel, volume) in zip(axes, scene.labels.items(), strict=True):
        labels, false = volume[:, :, z].T, None
        if panel != TRUTH and TRUTH in scene.labels:
            judged = np.isin(labels, [label for label in colours if label in scene.known])
            false = judged & (labels != scene.labels[TRUTH][:, :, z].T)
        aspect = scene.spacing_mm[1] / scene.spacing_mm[0]
        paint(axis, scene.voxels[:, :, z].T, labels, colours, aspect, window, false)
    return figure


class Pictured(widgets.VBox):
    """Widgets around a figure. Where no widget runs (an executed notebook, HTML), the first figure stands."""

    def __init__(self, controls: list[widgets.Widget], alt: str) -> None:
        self.picture = widgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.still, self.alt = b"", alt
        super().__init__([*controls, self.picture])

    def show(self, figure: Figure) -> None:
        """Puts another figure in the place of the one that is shown."""
        figure.savefig(buffer := io.BytesIO(), format="png", bbox_inches="tight", metadata={"Software": None})
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
        self.scene, self.windows = scene, CT_WINDOWS_HU
        if scene.modality != "CT":
            low, high = np.percentile(scene.voxels[::2, ::2], ClipSegSettings.mr_percentiles).tolist()
            self.windows = {MODEL: (low, high)}
        self.slice = widgets.IntSlider(start, 0, len(count) - 1, description="slice")
        self.window = widgets.Dropdown(options=[*self.windows], description="window")
        organs = {"options": [(name, label) for label, name in scene.names.items()], "value": [*scene.names]}
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

    def __init__(self, model: TextPromptedSegmenter, settings: ClipSegSettings, scan: Segmentation,
                 start: int, prompt: str = "lien") -> None:
        self.model, self.settings, self.scan = model.eval(), settings, scan
        self.store = store_of(scan.grey, scan.grid, scan.modality, settings)
        last = scan.grey.shape[2] - 1
        self.prompt = widgets.Text(prompt, description="prompt", continuous_update=False)
        self.slice = widgets.IntSlider(start, 0, last, description="slice", continuous_update=False)
        alt = f"The mask that “{prompt}” is given, and bars of its likeness to the 13 trained prompts."
        super().__init__([widgets.HBox([self.prompt, self.slice])], alt)
        self.slice.observe(self._encode, "value")
        self.prompt.observe(self._draw, "value")
        self._encode()

    @torch.inference_mode()
    def _encode(self, _change: Any = None) -> None:
        window = np.array(store_window(self.store, self.slice.value, self.settings))
        device = self.model.mean.device
        encoded = self.model.encode_slices(torch.from_numpy(self.store.slices(window)).to(device))
        rows, mm = torch.arange(len(window))[None], window_mm(self.store, window[None])
        self.activations, _ = self.model.adapt(encoded, rows.to(device), mm.to(device))
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
        (text, [probability]), (known, others) = self._ask([prompt]), self.known
        mask, masks = probability > 0.5, others > 0.5
        overlaps = 2 * (mask & masks).sum((1, 2)) / (mask.sum() + masks.sum((1, 2))).clip(1)
        return probability, torch.cosine_similarity(text, known).cpu().numpy(), overlaps

    def _draw(self, _change: Any = None) -> None:
        small, cosines, overlaps = self.likeness(self.prompt.value)
        grey, spacing = self.scan.grey[:, :, self.slice.value].T, self.scan.grid.spacing_mm
        mask = (resize(small[None], grey.shape[0], grey.shape[1], nearest=False)[0] > 0.5).astype(np.uint8)
        colours = [BY_KEY[key].colour for key in KEYS]
        nearest = colours[overlaps.argmax()] if overlaps.max() > 0 else NOTHING
        figure, (picture, *bars) = _panels(["", "cosine of the text", "Dice of the mask"], {})
        title = picture.set_title("", fontsize=9, loc="left", pad=3)
        write(title, f"“{self.prompt.value}", f"”, slice {self.slice.value + 1}")
        paint(picture, grey, mask, {1: nearest}, spacing[1] / spacing[0])
        for axis, values in zip(bars, (cosines, overlaps), strict=True):
            edges = ["black" if value == values.max() > 0 else "none" for value in values]
            axis.barh(KEYS, values, color=colours, edgecolor=edges)
            axis.set_xlim(min(0, *values), 1)
            axis.tick_params(labelsize=7, labelleft=axis is bars[0], left=False)
            axis.invert_yaxis()
        self.show(figure)


def front_view(scene: Scene, panel: str) -> np.ndarray:
    """(Z, X, 3), 0 to 1: organs from the front, right on the left; what turns away or is deep is darker."""
    labels, (x_mm, y_mm, z_mm) = scene.labels[panel], scene.spacing_mm
    depth = np.where((labels > 0).any(1), (labels > 0).argmax(1), labels.shape[1] - 1)  # (X, Z)
    label = np.take_along_axis(labels, depth[:, None], 1)[:, 0]
    surface = np.pad(depth, 1, mode="edge") * y_mm
    light = LightSource(altdeg=90).hillshade(surface, dx=z_mm, dy=x_mm)[1:-1, 1:-1]
    shade = (0.4 + 0.6 * light) * (1 - 0.3 * depth / labels.shape[1])
    picture = np.where(label[..., None] > 0, palette(scene.colours)[label, :3] * shade[..., None], 1)
    return picture.transpose(1, 0, 2)[::-1]


class Solid(Pictured):
    """The last panel's organs to turn, by NiiVue; printed, all panels from the front."""

    def __init__(self, scene: Scene) -> None:
        super().__init__([], f"Organs from the front: {', '.join(scene.labels)}.")
        legend = {name: scene.colours[label] for label, name in scene.names.items()}
        figure, axes = _panels([f"{panel}, from the front" for panel in scene.labels], legend)
        for axis, panel in zip(axes, scene.labels, strict=True):
            axis.imshow(front_view(scene, panel), aspect=scene.spacing_mm[2] / scene.spacing_mm[0])
            axis.set_axis_off()
        self.show(figure)
        affine = np.diag([*(np.array(scene.spacing_mm) * (-1, -1, 1)), 1.0])  # our axes are LPS, NIfTI's RAS
        data = nib.Nifti1Image([*scene.labels.values()][-1], affine).to_bytes()
        volume = Volume(data=data, name="organs.nii", colorbar_visible=False)
        colours = (palette(scene.colours) * 255).round().astype(int).T.tolist()
        volume.set_colormap_label(dict(zip("RGBA", colours, strict=True)))
        canvas = NiiVue(height=420, back_color=(1.0, 1.0, 1.0, 1.0))
        canvas.set_slice_type(SliceType.RENDER)
        canvas.load_volumes([volume])
        self.children = [canvas]
