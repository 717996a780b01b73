"""The viewer: a slider through the slices, a box to tick for each organ, the grey window; plain ipywidgets around one picture."""

import base64
from typing import Any

import ipywidgets as widgets
from PIL import Image

from .paint import encoded, paint
from .scene import Scene, fullest_slice, windows_of

WRAPPED = {"flex_flow": "row wrap", "align_items": "center"}


class Pictured(widgets.VBox):
    """Widgets around a picture. Where no widget runs (an executed notebook, HTML), the picture of the first moment stands alone."""

    def __init__(self, controls: list[widgets.Widget], alt: str) -> None:
        self.picture = widgets.Image(format="jpeg", layout={"max_width": "100%", "object_fit": "contain", "align_self": "flex-start"})
        self.still, self.alt = b"", alt
        super().__init__([*controls, self.picture])

    def show(self, picture: Image.Image) -> None:
        """Puts another picture in the place of the one that is shown."""
        self.picture.value = encoded(picture, "jpeg")
        self.still = self.still or encoded(picture, "png")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle |= {"image/png": base64.b64encode(self.still).decode(), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


class Viewer(Pictured):
    """A scan, slice by slice: truth and predictions side by side, false positives in a colour of their own, the gate if there is one."""

    def __init__(self, scene: Scene, start: int | None = None, gate: bool = False) -> None:
        """start: the first slice to show, counted from the feet (default: one with most organs). gate: it is shown from the start."""
        self.scene, self.windows = scene, windows_of(scene)
        narrow = widgets.Layout(width="auto", margin="2px 14px 2px 4px")
        self.slice = widgets.IntSlider(
            fullest_slice(scene) if start is None else start, 0, scene.depth - 1, description="slice", layout={"width": "420px"}
        )
        self.window = widgets.Dropdown(options=list(self.windows), description="window", layout={"width": "270px"})
        self.organs = {label: widgets.Checkbox(True, description=name, indent=False, layout=narrow) for label, name in scene.names.items()}
        self.all = widgets.Checkbox(True, description="all", indent=False, layout=narrow)
        self.false = widgets.Checkbox(bool(scene.known), description="false positives", indent=False, layout=narrow)
        self.gate = widgets.Checkbox(gate, description="gate", indent=False, layout=narrow)
        switches = [*([self.false] if scene.known else []), *([self.gate] if scene.gates else [])]
        rows = [[self.slice, self.window, *switches], [self.all, *self.organs.values()]]
        panels = ", ".join(scene.labels)
        super().__init__(
            [widgets.Box(row, layout=WRAPPED) for row in rows],
            f"Slice {self.slice.value + 1} of a scan with its organs in colours: {panels}.",
        )
        self.all.observe(self._tick_all, "value")
        for control in (self.slice, self.window, self.false, self.gate, *self.organs.values()):
            control.observe(self._draw, "value")
        self._draw()

    def _tick_all(self, change: Any) -> None:
        self._held = True
        for box in self.organs.values():
            box.value = change["new"]
        self._held = False
        self._draw()

    _held = False  # many boxes change together: one picture is enough

    def _draw(self, _change: Any = None) -> None:
        if not self._held:
            shown = [label for label, box in self.organs.items() if box.value]
            window = self.windows[self.window.value]
            self.show(paint(self.scene, self.slice.value, window, shown, self.false.value, self.gate.value))
