"""A slice with its masks, false positives and gate as one RGB picture, by numpy and Pillow alone: milliseconds, and any front end shows it.

Pictures have rows first, the patient's right on the left and the front up.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .scene import TRUTH, Scene

PANEL, TITLE, GAP, FONT = 320, 24, 6, 14  # pixels: a panel's longer edge, the line above it, the space between two, letters
FILL, FALSE_FILL, GATE = 0.4, 0.75, 0.55  # opacity of a mask, of its false part, and of a gate map
FALSE = "#00ffff"  # of false positives: no organ has it


def palette(colours: Mapping[int, str]) -> np.ndarray:
    """(256, 3) uint8 colour of each label."""
    table = np.zeros((256, 3), np.uint8)
    table[list(colours)] = [ImageColor.getrgb(colour)[:3] for colour in colours.values()]
    return table


@lru_cache(1)
def _viridis() -> np.ndarray:
    """(256, 3) uint8 colours of a gate, from shut to open."""
    return (mpl.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)


@lru_cache(2)
def font(size: int = FONT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Letters for titles and legends: Pillow's own, which are there on every machine."""
    return ImageFont.load_default(size)


def panel_size(width_mm: float, height_mm: float) -> tuple[int, int]:
    """Columns and rows of a panel that shows so many millimetres with square pixels."""
    scale = PANEL / max(width_mm, height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def nearest(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns) -> (size[1], size[0]): the pixel under each new pixel's centre."""
    row, column = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(picture.shape, size[::-1], strict=True))
    return picture[row[:, None], column]


def smooth(picture: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """(rows, columns) uint8 -> a grey picture of that size, linearly between the pixels."""
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR)


def outline(labels: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: the labelled pixels beside a pixel with another label, or at the picture's edge."""
    padded, (rows, columns) = np.pad(labels, 1), labels.shape
    beside = ((0, 1), (2, 1), (1, 0), (1, 2))
    return (labels > 0) & np.any([padded[y : y + rows, x : x + columns] != labels for y, x in beside], axis=0)


def marked(grey: Image.Image, labels: np.ndarray, colours: np.ndarray, false: np.ndarray | None = None, fill: float = FILL) -> Image.Image:
    """A picture in colour with its labels (rows, columns) filled and outlined, `false` ones in the colour of false positives.

    colours: `palette`.
    """
    ink, opacity = colours.take(labels, 0), (labels > 0) * np.uint8(255 * fill)
    opacity[outline(labels)] = 255
    if false is not None:
        ink[false], opacity[false] = ImageColor.getrgb(FALSE)[:3], int(255 * FALSE_FILL)
    return Image.composite(Image.fromarray(ink), grey.convert("RGB"), Image.fromarray(opacity))


def _grey(scene: Scene, z: int, window: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    low, high = window
    plane = scene.voxels[:, :, z].T.astype(np.float32)
    return smooth(((plane - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8), size)


def _gate(grey: Image.Image, maps: np.ndarray, z: int) -> Image.Image:
    """A slice under its gate map, coloured from the lowest to the highest value in the scan."""
    low, high = float(maps.min()), float(maps.max())
    level = ((maps[z].astype(np.float32) - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return Image.blend(grey.convert("RGB"), Image.fromarray(_viridis().take(nearest(level, grey.size), 0)), GATE)


def _panel(scene: Scene, panel: str, z: int, grey: Image.Image, shown: np.ndarray, false: bool, gate: bool) -> Image.Image:
    """One panel. shown: (256,) each label, or 0 where it is not to be seen."""
    labels, wrong = shown.take(nearest(scene.labels[panel][:, :, z].T, grey.size)), None
    if false and panel != TRUTH and scene.known:
        wrong = np.isin(np.arange(256), scene.known).take(labels) & (labels != nearest(scene.labels[TRUTH][:, :, z].T, grey.size))
    if gate and panel in scene.gates:
        return marked(_gate(grey, scene.gates[panel], z), labels, palette(scene.colours), wrong, fill=0.0)
    return marked(grey, labels, palette(scene.colours), wrong)


def paint(scene: Scene, z: int, window: tuple[float, float], shown: Collection[int], false: bool = True, gate: bool = False) -> Image.Image:
    """Slice z, panel beside panel, with a title above each and a legend below.

    window: grey values from black to white. shown: the labels to mark. false: what the truth does not have is marked in one colour.
    gate: over each panel that has one lies its gate map.
    """
    size = panel_size(*(n * mm for n, mm in zip(scene.voxels.shape[:2], scene.spacing_mm[:2], strict=True)))
    grey, width = _grey(scene, z, window, size), (size[0] + GAP) * len(scene.labels) - GAP
    pairs = [(name, scene.colours[label]) for label, name in scene.names.items() if label in shown]
    pairs += [("false positive", FALSE)] if false and scene.known else []
    kept = np.where(np.isin(np.arange(256), list(shown)), np.arange(256), 0).astype(np.uint8)
    keys = legend(pairs, width)
    page = Image.new("RGB", (width, TITLE + size[1] + GAP + keys.height), "white")
    for place, panel in enumerate(scene.labels):
        left, title = place * (size[0] + GAP), panel if place else f"{panel}, slice {z + 1} of {scene.depth}"
        if gate and panel in scene.gates:
            title += f", gate {scene.gates[panel].min():.2f} to {scene.gates[panel].max():.2f}"
        ImageDraw.Draw(page).text((left + 2, 3), title, "black", font())
        page.paste(_panel(scene, panel, z, grey, kept, false, gate), (left, TITLE))
    page.paste(keys, (0, TITLE + size[1] + GAP))
    return page


def legend(pairs: Sequence[tuple[str, str]], width: int) -> Image.Image:
    """Names, each behind a square of its colour, in as many lines as they need."""
    letters, line, places, x, y = font(), FONT + 6, list[tuple[int, int]](), 0, 0
    for name, _ in pairs:
        step = line + 14 + int(letters.getlength(name))
        if x and x + step > width:
            x, y = 0, y + line
        places.append((x, y))
        x += step
    picture = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(picture)
    for (name, colour), (x, y) in zip(pairs, places, strict=True):
        draw.rectangle((x + 2, y + 4, x + FONT, y + FONT + 2), colour)
        draw.text((x + line, y + 1), name, "black", letters)
    return picture


def encoded(picture: Image.Image, kind: str) -> bytes:
    """The picture as a file: "png", or "jpeg", which takes a twentieth of the time and keeps its colours sharp."""
    picture.save(buffer := io.BytesIO(), kind, **({"quality": 92, "subsampling": 0} if kind == "jpeg" else {}))
    return buffer.getvalue()
