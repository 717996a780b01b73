"""The 13 organs and what every data set calls them. Data only, defined once."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from lib.files import InputError


@dataclass(frozen=True)
class Organ:
    """One organ. `label` is its FLARE22 id, which is also its id in every label map that we write."""

    key: str
    label: int
    lateral: bool  # a left-right flip would turn it into another organ
    weight: float  # sampling weight, T-Gated Table 1
    colour: str  # one colour per organ in every figure
    short: str  # for table rows and axis ticks
    tolerance_mm: float  # of the surface Dice, as FLARE22 scores it
    synonym: str  # another name that a radiologist would use
    wrong: str  # organ that takes its place in the wrong-prompt test

    @property
    def prompt(self) -> str:
        """Text prompt: the papers ask for an organ by its plain name."""
        return self.key


ORGANS = (
    Organ("liver", 1, False, 1.0, "#b5523b", "Liver", 5.0, "hepatic organ", "aorta"),
    Organ("right kidney", 2, True, 1.0, "#e08e45", "R. kidney", 3.0, "kidney on the right", "stomach"),
    Organ("spleen", 3, False, 1.0, "#7a4f9a", "Spleen", 3.0, "lien", "duodenum"),
    Organ("pancreas", 4, False, 2.0, "#e3c13b", "Pancreas", 5.0, "pancreatic gland", "liver"),
    Organ("aorta", 5, False, 1.0, "#d62f3c", "Aorta", 2.0, "abdominal aorta", "gallbladder"),
    Organ("inferior vena cava", 6, False, 1.0, "#2f6db5", "IVC", 2.0, "IVC", "spleen"),
    Organ(
        "right adrenal gland", 7, True, 8.0, "#3fa66b", "R. adrenal", 2.0, "right suprarenal gland",
        "esophagus",
    ),
    Organ(
        "left adrenal gland", 8, True, 8.0, "#8fce6a", "L. adrenal", 2.0, "left suprarenal gland",
        "inferior vena cava",
    ),
    Organ("gallbladder", 9, False, 2.0, "#2fae9d", "Gallbladder", 2.0, "cholecyst", "right kidney"),
    Organ("esophagus", 10, False, 8.0, "#c77bb8", "Esophagus", 3.0, "oesophagus", "left kidney"),
    Organ("stomach", 11, False, 2.0, "#e6799b", "Stomach", 5.0, "gastric pouch", "right adrenal gland"),
    Organ(
        "duodenum", 12, False, 8.0, "#8d7355", "Duodenum", 7.0, "first part of the small bowel",
        "left adrenal gland",
    ),
    Organ("left kidney", 13, True, 1.0, "#f2b97d", "L. kidney", 3.0, "kidney on the left", "pancreas"),
)
KEYS = tuple(organ.key for organ in ORGANS)
PROMPTS = tuple(organ.prompt for organ in ORGANS)
# what each organ is asked by instead of its name, in the order of ORGANS (T-Gated section 4.4, and beyond)
PROMPT_SETS = {
    "blank": tuple("" for _ in ORGANS),
    "wrong organ": tuple(organ.wrong for organ in ORGANS),
    "synonym": tuple(organ.synonym for organ in ORGANS),
    "template": tuple(f"an image of the {organ.key} in an abdominal scan" for organ in ORGANS),
}
# Med-VLM Table 1, as printed; BTCV's own 13 structures. The paper's text quotes a liver's prompt that differs
# a little from its table.
DESCRIPTIONS = {
    "spleen": "The spleen's long axis corresponds most closely to the eleventh or tenth rib and passes anterior to the mid-axillary line.",
    "right kidney": "The right kidney lies in the right retroperitoneum, inferior to the liver and lateral to the psoas muscle.",
    "left kidney": "The left kidney is positioned in the left retroperitoneum, inferior to the spleen and lateral to the psoas muscle.",
    "gallbladder": "The gallbladder is located in the right upper quadrant, beneath the liver at the gallbladder fossa.",
    "esophagus": "The esophagus courses vertically in the posterior mediastinum, posterior to the trachea and anterior to the spine.",
    "liver": (
        "Located in the right upper quadrant just below the diaphragm. The liver lies to the right of the "
        "stomach and overlies the "
        "gallbladder."
    ),
    "stomach": "The stomach is located in the left upper quadrant, posterior to the liver and anterior to the pancreas.",
    "aorta": "The aorta descends along the midline in the retroperitoneum, anterior to the spine and left of the inferior vena cava.",
    "inferior vena cava": "The inferior vena cava ascends along the right side of the aorta in the retroperitoneum.",
    "portal and splenic veins": (
        "The portal and splenic veins form posterior to the pancreas and course toward the liver hilum "
        "within the hepatoduodenal ligament."
    ),
    "pancreas": "The pancreas lies transversely in the upper abdomen, posterior to the stomach and anterior to the splenic vein.",
    "right adrenal gland": "Superior and medial to the right kidney, adjacent to the upper pole and near the inferior vena cava.",
    "left adrenal gland": "Superior and medial to the left kidney, adjacent to the upper pole and near the aorta.",
}
TEXTS = (
    "description", "name", "shuffled description", "another's description", "one-hot",
)  # what Med-VLM is asked by
BY_KEY = {organ.key: organ for organ in ORGANS}


def _label_map(ids: dict[str, int], background: tuple[int, ...] = ()) -> dict[int, int]:
    """{id in the file: our label}; ids of `background` and 0 are known and become 0."""
    return {0: 0, **dict.fromkeys(background, 0), **{i: BY_KEY[key].label for key, i in ids.items()}}


def _by_number(*ids: int) -> dict[str, int]:
    """Ids in the order of ORGANS; 0 where the data set does not label the organ."""
    return {key: i for key, i in zip(KEYS, ids, strict=True) if i}


_TOTAL = _by_number(5, 2, 1, 7, 52, 63, 8, 9, 4, 15, 6, 19, 3)
_TOTAL_MR = _by_number(5, 2, 1, 7, 23, 24, 8, 9, 4, 12, 6, 14, 3)

# Ids as in the data sets' own label files. An id that is missing here is an error when a file holds it.
LABEL_MAPS = {
    "FLARE22": _label_map({organ.key: organ.label for organ in ORGANS}),
    "BTCV": _label_map(
        _by_number(6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3), background=(10,)
    ),  # 10: portal, splenic vein
    "AMOS22": _label_map(
        _by_number(6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3), background=(14, 15)
    ),  # bladder, prostate
    "TotalSegmentator": _label_map(_TOTAL, tuple(i for i in range(1, 118) if i not in _TOTAL.values())),
    "TotalSegmentatorMR": _label_map(
        _TOTAL_MR, tuple(i for i in range(1, 57) if i not in _TOTAL_MR.values())
    ),
}


# Other names in the dataset.json of nnU-Net users and of AMOS22 ("arota", "postcava"); "": none of the 13
_ALSO_CALLED = {
    **{"gall bladder": "gallbladder", "oesophagus": "esophagus", "arota": "aorta"},
    **dict.fromkeys(("postcava", "ivc"), "inferior vena cava"),
    **dict.fromkeys(("background", "portal vein and splenic vein", "portal and splenic veins"), ""),
    **dict.fromkeys(("bladder", "urinary bladder", "prostate/uterus", "prostate or uterus", "prostate"), ""),
}


def _words(name: str) -> frozenset[str]:
    """What "kidney_right", "Right Kidney" and "right kidney (RK)" have in common."""
    return frozenset(re.findall("[a-z]+", re.sub(r"\(.*?\)", "", name.lower()))) - {"gland"}


def named_ids(path: Path) -> dict[int, int]:
    """{id in the file: our label} by nnU-Net's dataset.json, which holds {name: id} or, in its version 1,
    {id: name}.

    Raises:
        InputError: the file cannot be read, holds regions of several ids, or a name that stands for nothing
        here.
    """
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = [(i, name) if str(i).isdecimal() else (name, i) for i, name in labels.items()]
        names = {int(i): str(name) for i, name in pairs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = "does not hold nnU-Net's labels, one id for each name: write it as nnU-Net's dataset.json."
        raise InputError(f"{path} {why}") from error
    called = dict(zip(KEYS, KEYS, strict=True)) | _ALSO_CALLED
    known = {_words(name): BY_KEY[key].label if key else 0 for name, key in called.items()}
    if unknown := [name for name in names.values() if _words(name) not in known]:
        why = f"names labels that are known neither as organs nor as others ({', '.join(unknown)})"
        raise InputError(f"{path} {why}: call them as in lib/organs.py.")
    return {0: 0} | {i: known[_words(name)] for i, name in names.items()}


def label_ids(label_map: str) -> dict[int, int]:
    """{id in the file: our label id} of a key of LABEL_MAPS, or of the path of an nnU-Net dataset.json
    (see `named_ids`)."""
    if label_map.endswith(".json"):
        return named_ids(Path(label_map))
    if label_map not in LABEL_MAPS:
        known = f"choose one of {', '.join(LABEL_MAPS)}, or name an nnU-Net dataset.json."
        raise InputError(f"{label_map!r} is no label map: {known}")
    return LABEL_MAPS[label_map]


def labelled(label_map: str) -> tuple[str, ...]:
    """Keys of the organs that a data set labels, in the order of ORGANS (BTCV has 12 of the 13)."""
    known = set(label_ids(label_map).values())
    return tuple(organ.key for organ in ORGANS if organ.label in known)


def text_prompts(text: str, organs: tuple[str, ...]) -> tuple[str, ...]:
    """What Med-VLM asks `organs` by: one of TEXTS. Another's description is that of the next of the organs
    asked.

    A one-hot organ has no text, so its name stands in. ValueError where there is no such text, or no
    description of an organ.
    """
    if text in ("name", "one-hot"):
        return organs
    if text not in TEXTS or any(key not in DESCRIPTIONS for key in organs):
        raise ValueError(
            f"No {text!r} of {', '.join(organs)}: texts are {', '.join(TEXTS)}, organs "
            f"{', '.join(DESCRIPTIONS)}."
        )
    if text == "another's description":
        organs = (*organs[1:], *organs[:1])
    described = [DESCRIPTIONS[key].split() for key in organs]
    if text == "shuffled description":
        described = [random.Random(0).sample(words, len(words)) for words in described]
    return tuple(" ".join(words) for words in described)
