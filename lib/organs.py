"""The 13 organs and what every data set calls them. Data only, defined once."""

from dataclasses import dataclass


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
    Organ("right adrenal gland", 7, True, 8.0, "#3fa66b", "R. adrenal", 2.0, "right suprarenal gland", "esophagus"),
    Organ("left adrenal gland", 8, True, 8.0, "#8fce6a", "L. adrenal", 2.0, "left suprarenal gland", "inferior vena cava"),
    Organ("gallbladder", 9, False, 2.0, "#2fae9d", "Gallbladder", 2.0, "cholecyst", "right kidney"),
    Organ("esophagus", 10, False, 8.0, "#c77bb8", "Esophagus", 3.0, "oesophagus", "left kidney"),
    Organ("stomach", 11, False, 2.0, "#e6799b", "Stomach", 5.0, "gastric pouch", "right adrenal gland"),
    Organ("duodenum", 12, False, 8.0, "#8d7355", "Duodenum", 7.0, "first part of the small bowel", "left adrenal gland"),
    Organ("left kidney", 13, True, 1.0, "#f2b97d", "L. kidney", 3.0, "kidney on the left", "pancreas"),
)
KEYS = tuple(organ.key for organ in ORGANS)
PROMPTS = tuple(organ.prompt for organ in ORGANS)
PROMPT_SETS = {  # what each organ is asked by instead of its name, in the order of ORGANS (T-Gated section 4.4, and beyond)
    "blank": tuple("" for _ in ORGANS),
    "wrong organ": tuple(organ.wrong for organ in ORGANS),
    "synonym": tuple(organ.synonym for organ in ORGANS),
    "template": tuple(f"an image of the {organ.key} in an abdominal scan" for organ in ORGANS),
}
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
    "BTCV": _label_map(_by_number(6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3), background=(10,)),  # 10: portal, splenic vein
    "AMOS22": _label_map(_by_number(6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3), background=(14, 15)),  # bladder, prostate
    "TotalSegmentator": _label_map(_TOTAL, tuple(i for i in range(1, 118) if i not in _TOTAL.values())),
    "TotalSegmentatorMR": _label_map(_TOTAL_MR, tuple(i for i in range(1, 57) if i not in _TOTAL_MR.values())),
}


def labelled(label_map: str) -> tuple[str, ...]:
    """Keys of the organs that a data set labels, in the order of ORGANS (BTCV has 12 of the 13)."""
    known = set(LABEL_MAPS[label_map].values())
    return tuple(organ.key for organ in ORGANS if organ.label in known)
