"""Figure 2: the architecture, drawn from the names, shapes and parameters of the model as it is built."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from lib.paths import write_json
from lib.profiles import Settings, settings_of

from .extracts import stored
from .pages import COLOURS, STYLE, new_page

PROMPT = "pancreas"
# of CIDAS/clipseg-rd64-refined, where the settings do not say it: CLIP's vocabulary, its picture size, and the "refined" head
HUB_SIZES = {"vocab_size": 49408, "image_size": 224, "use_complex_transposed_convolution": True}


class Box(NamedTuple):
    """A box of figure 2: where it stands, in inches from the page's lower left, and which modules it draws."""

    title: str
    modules: tuple[str, ...]  # names of the model's modules or parameters; their parameters are counted
    corner: tuple[float, float]
    width: float = 0.97


_CLIP, _DECODER = "base_model.clip", "base_model.decoder"
_TOP, _MIDDLE, _BOTTOM, _HEIGHT = 2.95, 1.5, 0.1, 0.98
BOXES = {
    "slices": Box("slices", (), (0.02, _TOP), 0.8),
    "vision": Box("CLIP vision encoder", (f"{_CLIP}.vision_model",), (1.0, _TOP), 1.33),
    "proj_in": Box("projection", ("adapter.proj_in",), (2.74, _TOP)),
    "position": Box("+ position", ("adapter.temporal_pos_emb",), (3.87, _TOP)),
    "temporal": Box("temporal layers", ("adapter.temporal_layers",), (5.0, _TOP)),
    "proj_out": Box("norm, projection", ("adapter.transformer_norm", "adapter.proj_out"), (6.13, _TOP)),
    "spatial": Box("spatial context", ("adapter.spatial_context",), (6.13, _MIDDLE)),
    "gate": Box("gate g", ("adapter.gate_proj",), (3.3, _MIDDLE), 2.1),
    "decoder": Box("decoder", (_DECODER,), (1.0, _MIDDLE), 1.33),
    "mask": Box("mask", (), (0.02, _MIDDLE), 0.8),
    "film": Box("FiLM", (f"{_DECODER}.film_mul", f"{_DECODER}.film_add"), (1.0, _BOTTOM), 1.33),
    "text": Box("CLIP text encoder", (f"{_CLIP}.text_model", f"{_CLIP}.text_projection"), (2.74, _BOTTOM), 1.33),
    "prompt": Box("text prompt", (), (4.5, _BOTTOM), 0.9),
}


def _built(settings: Settings) -> Any:
    """The model of the settings. In place of weights from the hub it has random ones of the same sizes: a picture needs no download."""
    import torch  # here, because figures alone should take seconds
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from lib.clipseg import TextPromptedSegmenter, build, small_config, small_tokenizer

    if not settings.weights:
        return build(settings)
    torch.manual_seed(settings.seed)
    tokenizer = small_tokenizer()
    try:
        config = CLIPSegConfig.from_pretrained(settings.weights, revision=settings.revision, local_files_only=True)
    except OSError:
        config = small_config(settings, tokenizer)
        for part in (config, config.text_config, config.vision_config):
            for name in HUB_SIZES.keys() & vars(part).keys():
                setattr(part, name, HUB_SIZES[name])
    return TextPromptedSegmenter(CLIPSegForImageSegmentation(config), tokenizer, settings)


def _shapes(model: Any, settings: Settings) -> dict[str, list[int]]:
    """Output shape of every box for one window and one prompt, noted while the model runs."""
    import torch

    shapes: dict[str, list[int]] = {"slices": [settings.window, settings.size, settings.size], "prompt": [1]}
    adapter, clip = model.adapter, model.base_model.clip
    parts = {"proj_in": adapter.proj_in, "temporal": adapter.temporal_layers[-1], "proj_out": adapter.proj_out}
    parts |= {"spatial": adapter.spatial_context, "gate": adapter.gate_proj, "film": model.base_model.decoder.film_mul}
    parts |= {"vision": clip.vision_model.encoder.layers[model.levels[0]]}

    def note(key: str) -> Callable[..., None]:
        return lambda module, given, out: shapes.update({key: list(out.shape)})

    for key, part in parts.items():
        part.register_forward_hook(note(key))
    adapter.temporal_layers[0].register_forward_pre_hook(lambda module, given: shapes.update(position=list(given[0].shape)))
    with torch.inference_mode():
        text = model.eval().encode_text([PROMPT])
        model.to("meta")  # from here on nothing is computed but shapes, which takes no time at full size, either
        slices = torch.zeros(shapes["slices"], device="meta")
        windows, first = torch.arange(settings.window, device="meta")[None], torch.zeros(1, dtype=torch.long, device="meta")
        activations, _ = model.adapt(model.encode_slices(slices), windows)
        mask = model.decode(activations, text.to("meta"), first)
    return shapes | {"text": list(text.shape), "decoder": list(mask.shape), "mask": list(mask.shape)}


def extract_architecture(profile: str) -> None:
    """architecture.json: the boxes of figure 2 with their modules, output shapes and parameters, and the totals."""
    settings = settings_of("adapter", profile)
    model = _built(settings)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    idle = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    levels, depth = list(model.levels), len(model.base_model.clip.vision_model.encoder.layers)

    def count(modules: tuple[str, ...]) -> int:
        return sum(size for name, size in sizes.items() if any(f"{name}.".startswith(f"{module}.") for module in modules))

    shapes = _shapes(model, settings)
    counts = {key: count(box.modules) for key, box in BOXES.items()}
    counts["decoder"] -= counts["film"]  # which has a box of its own
    boxes = {key: {"modules": box.modules, "shape": shapes[key], "parameters": counts[key]} for key, box in BOXES.items()}
    totals = {"total": sum(sizes.values()), "adapter": count(("adapter",)), "idle": idle}
    about = {"adapted": settings.adapted, "levels": levels, "depth": depth, "layers": settings.adapter_depth, "window": settings.window}
    write_json(stored(profile, "architecture.json", needed=False), {"prompt": PROMPT, **about, **totals, "boxes": boxes})


def _number(parameters: int) -> str:
    """1234 -> "1.2 k"; 1234567 -> "1.23 M"."""
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k" if parameters >= 1000 else str(parameters)


def _draw(axis: Axes, key: str, model: dict[str, Any]) -> None:
    """One box: title, module names, shape, parameters."""
    box, part = BOXES[key], model["boxes"][key]
    mine = any(module.startswith("adapter.") for module in box.modules)
    edge, face = (COLOURS["adapter"], "#e3f4ee") if mine else ("#666666", "#f3f3f3")
    axis.add_patch(FancyBboxPatch(box.corner, box.width, _HEIGHT, "round,pad=0,rounding_size=0.06", edgecolor=edge, facecolor=face))
    titles = {"temporal": f"{model['layers']} {box.title}", "slices": f"{model['window']} {box.title}"}
    names = [
        module.removeprefix("adapter.").replace("base_model.", "." if place else "base_model\n.")
        for place, module in enumerate(box.modules)
    ]
    shape = f'"{model["prompt"]}"' if key == "prompt" else " × ".join(map(str, part["shape"]))
    x, top = box.corner[0] + box.width / 2, box.corner[1] + _HEIGHT
    axis.text(x, top - 0.07, titles.get(key, box.title), ha="center", va="top", fontweight="bold", fontsize=7.5 if box.width > 1 else 6.6)
    axis.text(x, top - 0.24, "\n".join(names), ha="center", va="top", fontsize=5.8, family="monospace", linespacing=1.15)
    formula = "\n$h = g\\,h_{spatial} + (1-g)\\,h_{slice}$" if key == "gate" else ""
    count = f"\n{_number(part['parameters'])} param." if box.modules else ""
    text, small = f"{shape}{count}{formula}", 7 if box.width > 1 else 6.5
    axis.text(x, box.corner[1] + 0.06, text, ha="center", va="bottom", fontsize=small, linespacing=1.25)


def _arrow(axis: Axes, *points: tuple[float, float]) -> None:
    """A line through the points, with its head at the last one."""
    axis.plot(*zip(*points, strict=True), color="#333333", linewidth=0.9, solid_capstyle="butt")
    head = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=head)


def _arrows(axis: Axes, model: dict[str, Any]) -> None:
    """All arrows, and what flows along those beside the adapter."""
    rows = (
        ("slices", "vision", "proj_in", "position", "temporal", "proj_out"),
        ("spatial", "gate", "decoder", "mask"),
        ("prompt", "text", "film"),
    )
    for source, target in (pair for row in rows for pair in pairwise(row)):
        right = BOXES[source].corner[0] < BOXES[target].corner[0]
        _arrow(axis, _side(source, right), _side(target, not right))
    _arrow(axis, (6.61, _TOP), (6.61, _MIDDLE + _HEIGHT))
    _arrow(axis, (1.66, _BOTTOM + _HEIGHT), (1.66, _MIDDLE))
    _arrow(axis, (2.1, _TOP), (2.1, 2.72), (4.35, 2.72), (4.35, _MIDDLE + _HEIGHT))
    axis.text(4.42, 2.6, "$h_{slice}$: the centre slice's own tokens", fontsize=7, va="center")
    if model["adapted"] == "deepest" and (others := model["levels"][1:]):
        _arrow(axis, (1.3, _TOP), (1.3, _MIDDLE + _HEIGHT))
        axis.text(1.25, 2.72, "blocks\n" + ", ".join(map(str, others)), fontsize=7, va="center", ha="right")


def _side(key: str, right: bool) -> tuple[float, float]:
    """Middle of a box's right or left side."""
    box = BOXES[key]
    return box.corner[0] + (box.width if right else 0), box.corner[1] + _HEIGHT / 2


@mpl.rc_context(STYLE)
def tgated_fig2(profile: str) -> Figure:
    """Figure 2: the model's parts with their modules, output shapes for one window and one prompt, and parameters."""
    model = json.loads(stored(profile, "architecture.json").read_text())
    which = f"block {model['levels'][0]}" if model["adapted"] == "deepest" else f"each of the blocks {', '.join(map(str, model['levels']))}"
    caption = f"The model as it is built: modules, shapes of what they give out for a window of {model['window']} slices and one prompt, "
    caption += "and parameters. Shapes are slices × tokens × width; inside the window, centres × tokens × slices × width, and the last "
    caption += f"temporal layer computes the centre alone. {_number(model['total'])} parameters in all, of which the adapter (green) has "
    caption += f"{_number(model['adapter'])} ({100 * model['adapter'] / model['total']:.1f} %); {_number(model['idle'])} take no part in "
    caption += f"any output. The adapter informs {which} of the vision encoder's {model['depth']}, counted from 0."
    figure = new_page(profile, caption, 4.75)
    axis = figure.add_subplot()
    axis.set(xlim=(0, 7.2), ylim=(0, 4.25))
    axis.axis("off")
    panel = (2.6, _MIDDLE - 0.13), 4.58, _TOP + _HEIGHT + 0.4 - _MIDDLE
    axis.add_patch(FancyBboxPatch(*panel, "round,pad=0,rounding_size=0.08", edgecolor=COLOURS["adapter"], facecolor="none", linestyle="--"))
    axis.text(4.89, _TOP + _HEIGHT + 0.09, "temporal adapter (adapter)", ha="center", color=COLOURS["adapter"], fontweight="bold")
    for key in BOXES:
        _draw(axis, key, model)
    _arrows(axis, model)
    return figure
