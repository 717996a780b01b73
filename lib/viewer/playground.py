"""Type a prompt, see its mask: what a text-prompted model makes of words that it was not trained on."""

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image, ImageDraw

from lib.clipseg import TextPromptedSegmenter
from lib.datasets import Store
from lib.metrics import dice
from lib.organs import BY_KEY, KEYS, ORGANS, PROMPTS
from lib.profiles import Settings
from lib.scans import Segmentation
from lib.windows import store_window

from .paint import GAP, PANEL, TITLE, font, marked, palette, panel_size, smooth
from .scene import store_of
from .slices import Pictured

NOTHING = "#999999"  # colour of a mask that overlaps with no organ's
LINE, NAMES, BAR, NUMBER = 22, 150, 110, 48  # pixels of a row of the list, and of its columns


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says to one prompt on one slice.

    probability: (S, S). cosines: of the prompt's text feature with each trained prompt's. overlaps: Dice of its mask, where the probability
    is over 0.5, with each of theirs; NaN where both are empty.
    """

    prompt: str
    probability: np.ndarray
    cosines: dict[str, float]
    overlaps: dict[str, float]

    @property
    def mask(self) -> np.ndarray:
        """(S, S) bool."""
        return self.probability > 0.5

    @property
    def by_text(self) -> str:
        """The organ whose prompt is nearest."""
        return max(self.cosines, key=lambda key: self.cosines[key])

    @property
    def by_mask(self) -> str | None:
        """The organ whose mask overlaps most; None where none does."""
        overlaps = {key: overlap for key, overlap in self.overlaps.items() if overlap > 0}
        return max(overlaps, key=lambda key: overlaps[key], default=None)

    @property
    def sentence(self) -> str:
        """What the prompt was taken for, in words."""
        text = f"text nearest to {self.by_text} (cosine {self.cosines[self.by_text]:.2f})"
        if not self.mask.any():
            return f"{text}; its mask is empty in this slice"
        if self.by_mask is None:
            return f"{text}; its mask meets no organ's"
        return f"{text}; mask most like that of {self.by_mask} (Dice {self.overlaps[self.by_mask]:.2f})"


class EncodedSlice:
    """A slice that is encoded once, with its neighbours; each prompt then costs the text encoder and the decoder."""

    @torch.inference_mode()
    def __init__(self, model: TextPromptedSegmenter, store: Store, z: int, settings: Settings) -> None:
        """z: the slice, counted from the feet. settings: the model's."""
        self.model = model.eval()
        needed, places = np.unique(store_window(store, z, settings), return_inverse=True)
        encoded = model.encode_slices(torch.from_numpy(store.slices(needed)).to(model.mean.device))
        self.activations, _ = model.adapt(encoded, torch.from_numpy(places[None]).to(model.mean.device))
        self.trained = model.encode_text(list(PROMPTS))  # (13, J)
        self.masks = self._probabilities(self.trained) > 0.5

    def _probabilities(self, text: torch.Tensor) -> np.ndarray:
        """(P, J) -> (P, S, S)."""
        logits = self.model.decode(self.activations, text, torch.zeros(len(text), dtype=torch.long, device=text.device))
        return logits.sigmoid().float().cpu().numpy()

    @torch.inference_mode()
    def ask(self, prompt: str) -> Answer:
        """The mask of any text, and which of the 13 trained prompts it resembles, as a text and as a mask."""
        text = self.model.encode_text([prompt])
        probability, cosines = self._probabilities(text)[0], torch.cosine_similarity(text, self.trained).tolist()
        mask = probability > 0.5
        shared, area, areas = (mask & self.masks).sum((1, 2)), int(mask.sum()), self.masks.sum((1, 2))
        overlaps = [dice(int(a), area, int(b)) for a, b in zip(shared, areas, strict=True)]
        return Answer(prompt, probability, dict(zip(KEYS, cosines, strict=True)), dict(zip(KEYS, overlaps, strict=True)))


def _list(answer: Answer) -> Image.Image:
    """The 13 organs with bars: cosine of the texts on the left, Dice of the masks on the right, the longest in a black frame."""
    columns = {"cosine of the text": answer.cosines, "Dice of the mask": answer.overlaps}
    page = Image.new("RGB", (NAMES + len(columns) * (BAR + NUMBER + GAP), TITLE + LINE * len(KEYS)), "white")
    draw, letters = ImageDraw.Draw(page), font()
    for place, (title, values) in enumerate(columns.items()):
        left, best = NAMES + place * (BAR + NUMBER + GAP), (answer.by_text, answer.by_mask)[place]
        draw.text((left, 3), title, "black", letters)
        for row, (organ, value) in enumerate(zip(ORGANS, values.values(), strict=True)):
            y = TITLE + row * LINE
            draw.text((2, y + 2), organ.key, "black", letters)
            if value > 0:
                box = (left, y + 4, left + round(BAR * value), y + LINE - 5)
                draw.rectangle(box, organ.colour, "black" if organ.key == best else organ.colour, 2)
            draw.text((left + BAR + 4, y + 2), "-" if np.isnan(value) else f"{value:.2f}", "black", letters)
    return page


def picture_of(answer: Answer, grey: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A slice (rows, columns) with the mask in the colour of the organ that it is most like, and beside it the list of the organs."""
    colour = BY_KEY[answer.by_mask].colour if answer.by_mask else NOTHING
    mask = np.asarray(Image.fromarray(answer.probability).resize(size, Image.Resampling.BILINEAR)) > 0.5
    right = _list(answer)
    page = Image.new("RGB", (size[0] + 3 * GAP + right.width, max(TITLE + size[1], right.height)), "white")
    ImageDraw.Draw(page).text((2, 3), f"“{answer.prompt}”", "black", font())
    page.paste(marked(smooth(grey, size), mask.astype(np.uint8), palette({1: colour})), (0, TITLE))
    page.paste(right, (size[0] + 3 * GAP, 0))
    return page


class Playground(Pictured):
    """A field for a prompt and a slider; below it the slice with the prompt's mask, and what the model took the prompt for."""

    def __init__(self, model: TextPromptedSegmenter, settings: Settings, scan: Segmentation, start: int, prompt: str = "lien") -> None:
        """scan: one that was segmented. start: the first slice, counted from the feet. prompt: the first one."""
        self.model, self.settings, self.grey, self.store = model, settings, scan.grey, store_of(scan, settings)
        self.size = panel_size(*(n * mm for n, mm in zip(scan.grey.shape[:2], scan.grid.spacing_mm[:2], strict=True)))
        self.prompt = widgets.Text(prompt, description="prompt", continuous_update=False, layout={"width": f"{PANEL + 100}px"})
        self.slice = widgets.IntSlider(start, 0, scan.grey.shape[2] - 1, description="slice", continuous_update=False)
        self.sentence = widgets.Label()
        super().__init__(
            [widgets.HBox([self.prompt, self.slice]), self.sentence],
            f"The mask that “{prompt}” is given, and bars of its likeness to the 13 trained prompts.",
        )
        self.slice.observe(self._encode, "value")
        self.prompt.observe(self._ask, "value")
        self._encode()

    def _encode(self, _change: Any = None) -> None:
        self.encoded = EncodedSlice(self.model, self.store, self.slice.value, self.settings)
        self._ask()

    def _ask(self, _change: Any = None) -> None:
        self.answer = self.encoded.ask(self.prompt.value)
        self.sentence.value = self.answer.sentence
        self.show(picture_of(self.answer, self.grey[:, :, self.slice.value].T, self.size))
