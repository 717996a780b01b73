"""The 13 organs and what every data set calls them. Data only, defined once."""

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lib.files import ROOT, InputError


@dataclass(frozen=True)
class Organ:
    """One organ. `label` is its FLARE22 id, which is also its id in every label map that we write."""

    key: str  # also its text prompt: the papers ask for an organ by its plain name
    label: int
    lateral: bool  # a left-right flip would turn it into another organ
    weight: float  # sampling weight, T-Gated Table 1
    colour: str  # one colour per organ in every figure
    short: str  # for table rows and axis ticks
    tolerance_mm: float  # of the surface Dice, as FLARE22 scores it
    synonym: str  # another name that a radiologist would use
    wrong: str  # organ that takes its place in the wrong-prompt test


ORGANS = (
    Organ("liver", 1, False, 1.0, "#a45244", "Liver", 5.0, "hepatic organ", "aorta"),
    Organ("right kidney", 2, True, 1.0, "#e09045", "R. kidney", 3.0, "kidney on the right", "stomach"),
    Organ("spleen", 3, False, 1.0, "#7a4f9a", "Spleen", 3.0, "lien", "duodenum"),
    Organ("pancreas", 4, False, 2.0, "#e3c13b", "Pancreas", 5.0, "pancreatic gland", "liver"),
    Organ("aorta", 5, False, 1.0, "#d62f3c", "Aorta", 2.0, "abdominal aorta", "gallbladder"),
    Organ("inferior vena cava", 6, False, 1.0, "#2f6db5", "IVC", 2.0, "IVC", "spleen"),
    Organ("right adrenal gland", 7, True, 8.0, "#42ac66", "R. adrenal", 2.0, "right suprarenal gland",
          "esophagus"),
    Organ("left adrenal gland", 8, True, 8.0, "#8fce6a", "L. adrenal", 2.0, "left suprarenal gland",
          "inferior vena cava"),
    Organ("gallbladder", 9, False, 2.0, "#2fae9d", "Gallbladder", 2.0, "cholecyst", "right kidney"),
    Organ("esophagus", 10, False, 8.0, "#c67ddf", "Esophagus", 3.0, "oesophagus", "left kidney"),
    Organ("stomach", 11, False, 2.0, "#e57993", "Stomach", 5.0, "gastric pouch", "right adrenal gland"),
    Organ("duodenum", 12, False, 8.0, "#897262", "Duodenum", 7.0, "first part of the small bowel",
          "left adrenal gland"),
    Organ("left kidney", 13, True, 1.0, "#50c4db", "L. kidney", 3.0, "kidney on the left", "pancreas"),
)
BY_KEY = {organ.key: organ for organ in ORGANS}
KEYS = PROMPTS = tuple(BY_KEY)
# what each organ is asked by instead of its name, in the order of ORGANS (T-Gated section 4.4, and beyond)
PROMPT_SETS = {
    "blank": tuple("" for _ in ORGANS),
    "wrong organ": tuple(organ.wrong for organ in ORGANS),
    "synonym": tuple(organ.synonym for organ in ORGANS),
    "template": tuple(f"an image of the {organ.key} in an abdominal scan" for organ in ORGANS),
}
# Med-VLM Table 1 as printed, for BTCV's own 13 structures; the paper's text quotes the liver's otherwise
DESCRIPTIONS = pd.read_csv(ROOT / "published" / "medvlm_table1.csv", index_col=0)["prompt"].to_dict()
# what Med-VLM is asked by
TEXTS = ("description", "name", "shuffled description", "another's description", "one-hot")


# Ids in the data sets' own label files, in the order of ORGANS (0: not labelled), and further ids that are
# known and become 0: BTCV's portal and splenic vein, AMOS22's bladder and prostate
_IDS: dict[str, tuple[tuple[int, ...], Iterable[int]]] = {
    "FLARE22": (tuple(range(1, 14)), ()),
    "BTCV": ((6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3), (10,)),
    "AMOS22": ((6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3), (14, 15)),
    "TotalSegmentator v1": ((5, 2, 1, 10, 7, 8, 11, 12, 4, 42, 6, 56, 3), range(1, 105)),
    "TotalSegmentator v2": ((5, 2, 1, 7, 52, 63, 8, 9, 4, 15, 6, 19, 3), range(1, 118)),
    "TotalSegmentatorMR": ((5, 2, 1, 7, 23, 24, 8, 9, 4, 12, 6, 14, 3), range(1, 57)),
}
# {id in the file: our label}; an id that is missing here is an error when a file holds it
LABEL_MAPS = {
    name: dict.fromkeys((0, *others), 0) | {i: label for label, i in enumerate(ids, 1) if i}
    for name, (ids, others) in _IDS.items()
}
LABEL_MAPS["TotalSegmentator"] = LABEL_MAPS["TotalSegmentator v2"]  # where nothing says which of the two
# Other names in the dataset.json of nnU-Net users and of AMOS22 ("arota", "postcava"); "": none of the 13
_ALSO_CALLED = {
    "gall bladder": "gallbladder", "oesophagus": "esophagus", "arota": "aorta",
    "postcava": "inferior vena cava", "ivc": "inferior vena cava", "background": "",
    "portal vein and splenic vein": "", "portal and splenic veins": "", "bladder": "", "urinary bladder": "",
    "prostate/uterus": "", "prostate or uterus": "", "prostate": "",
}


def _words(name: str) -> frozenset[str]:
    """What "kidney_right", "Right Kidney" and "right kidney (RK)" have in common."""
    return frozenset(re.findall("[a-z]+", re.sub(r"\(.*?\)", "", name.lower()))) - {"gland"}


def label_ids(label_map: str) -> dict[int, int]:
    """{id in the file: our label} of a key of LABEL_MAPS, or by the names in an nnU-Net dataset.json.

    InputError: no such map; a file that cannot be read, with regions of several ids, or with unknown names.
    """
    if not label_map.endswith(".json"):
        if label_map not in LABEL_MAPS:
            advice = f"choose one of {', '.join(LABEL_MAPS)}, or name an nnU-Net dataset.json."
            raise InputError(f"{label_map!r} is no label map: {advice}")
        return LABEL_MAPS[label_map]
    try:
        labels = json.loads(Path(label_map).read_text(encoding="utf-8"))["labels"]
        pairs = [(i, name) if str(i).isdecimal() else (name, i) for i, name in labels.items()]  # version 1, 2
        names = {int(i): str(name) for i, name in pairs}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = "does not hold nnU-Net's labels, one id for each name: write it as nnU-Net's dataset.json."
        raise InputError(f"{label_map} {why}") from error
    known = {_words(key): organ.label for key, organ in BY_KEY.items()}
    known |= {_words(name): BY_KEY[key].label if key else 0 for name, key in _ALSO_CALLED.items()}
    if unknown := [name for name in names.values() if _words(name) not in known]:
        why = f"names labels that are known neither as organs nor as others ({', '.join(unknown)})"
        raise InputError(f"{label_map} {why}: call them as in lib/organs.py.")
    return {0: 0} | {i: known[_words(name)] for i, name in names.items()}


def labelled(label_map: str) -> tuple[str, ...]:
    """Keys of the organs that a data set labels, in the order of ORGANS (BTCV has 12 of the 13)."""
    known = set(label_ids(label_map).values())
    return tuple(organ.key for organ in ORGANS if organ.label in known)


def text_prompts(text: str, organs: tuple[str, ...]) -> tuple[str, ...]:
    """What Med-VLM asks `organs` by: one of TEXTS. ValueError: no such text, or an organ not described."""
    if text in ("name", "one-hot"):  # a one-hot organ has no text: its name stands in
        return organs
    if text not in TEXTS or not DESCRIPTIONS.keys() >= {*organs}:
        known = f"texts are {', '.join(TEXTS)}, organs {', '.join(DESCRIPTIONS)}."
        raise ValueError(f"No {text!r} of {', '.join(organs)}: {known}")
    if text == "another's description":  # that of the next of the organs asked
        organs = (*organs[1:], *organs[:1])
    described = [DESCRIPTIONS[key].split() for key in organs]
    if text == "shuffled description":
        described = [random.Random(0).sample(words, len(words)) for words in described]
    return tuple(" ".join(words) for words in described)
