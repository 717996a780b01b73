"""The organs, their ids in every data set, and the words that models are asked by."""

import json
from pathlib import Path

import pytest

from lib.files import InputError
from lib.organs import (
    DESCRIPTIONS,
    KEYS,
    LABEL_MAPS,
    ORGANS,
    PROMPT_SETS,
    PROMPTS,
    TEXTS,
    label_ids,
    labelled,
    text_prompts,
)

IDS = {  # from the data sets' own tables, in the order of KEYS; 0: not labelled
    "FLARE22": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13),
    "BTCV": (6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3),
    "AMOS22": (6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3),
    "TotalSegmentator": (5, 2, 1, 7, 52, 63, 8, 9, 4, 15, 6, 19, 3),
    "TotalSegmentator v1": (5, 2, 1, 10, 7, 8, 11, 12, 4, 42, 6, 56, 3),
    "TotalSegmentator v2": (5, 2, 1, 7, 52, 63, 8, 9, 4, 15, 6, 19, 3),
    "TotalSegmentatorMR": (5, 2, 1, 7, 23, 24, 8, 9, 4, 12, 6, 14, 3),
}
OTHERS = {
    "FLARE22": (), "BTCV": (10,), "AMOS22": (14, 15),
    "TotalSegmentator": range(118), "TotalSegmentator v1": range(105), "TotalSegmentator v2": range(118),
    "TotalSegmentatorMR": range(57),
}


def test_an_organ_s_label_is_its_place() -> None:
    assert [organ.label for organ in ORGANS] == list(range(1, 14)) and len(set(KEYS)) == 13
    sided = [key for key in KEYS if key.split()[0] in ("left", "right")]
    assert [organ.key for organ in ORGANS if organ.lateral] == sided
    assert len({organ.colour for organ in ORGANS}) == len({organ.short for organ in ORGANS}) == 13
    assert [organ.tolerance_mm for organ in ORGANS] == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3], "FLARE22's"


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_label_maps_by_the_data_sets_own_tables(name: str) -> None:
    """Known ids that are no organ of ours become background."""
    organs = {i: label for i, label in LABEL_MAPS[name].items() if label}
    assert organs == {i: label for label, i in enumerate(IDS[name], 1) if i}
    assert labelled(name) == tuple(key for key, i in zip(KEYS, IDS[name], strict=True) if i)
    assert sorted(LABEL_MAPS[name].keys() - organs) == sorted({0, *OTHERS[name]} - {*organs})


def test_every_prompt_set_has_a_prompt_for_each_organ() -> None:
    assert PROMPTS == KEYS and list(PROMPT_SETS) == ["blank", "wrong organ", "synonym", "template"]
    assert all(len(prompts) == 13 for prompts in PROMPT_SETS.values()) and set(PROMPT_SETS["blank"]) == {""}
    wrong = PROMPT_SETS["wrong organ"]
    assert sorted(wrong) == sorted(KEYS) and all(one != other for one, other in zip(wrong, KEYS, strict=True))
    assert (wrong[KEYS.index("liver")], wrong[KEYS.index("pancreas")]) == ("aorta", "liver"), "as printed"
    assert not set(PROMPT_SETS["synonym"]) & set(KEYS) and len(set(PROMPT_SETS["synonym"])) == 13
    assert PROMPT_SETS["template"][0] == "an image of the liver in an abdominal scan"


def test_descriptions_are_those_that_the_paper_prints() -> None:
    assert set(DESCRIPTIONS) == {*KEYS, "portal and splenic veins"} - {"duodenum"}, "BTCV's own 13 structures"
    assert len(DESCRIPTIONS["gallbladder"].split()) == 16
    assert DESCRIPTIONS["liver"] == (
        "Located in the right upper quadrant just below the diaphragm. "
        "The liver lies to the right of the stomach and overlies the gallbladder."
    )
    assert DESCRIPTIONS["spleen"].endswith("passes anterior to the mid-axillary line.")


def test_what_med_vlm_is_asked_by() -> None:
    asked = ("spleen", "liver")
    spleen, liver = (DESCRIPTIONS[key] for key in asked)
    assert text_prompts("description", asked) == (spleen, liver)
    assert text_prompts("another's description", asked) == (liver, spleen)
    assert text_prompts("name", asked) == text_prompts("one-hot", asked) == asked
    shuffled = text_prompts("shuffled description", asked)
    assert shuffled == text_prompts("shuffled description", asked), "the same every time"
    for words, text in zip(shuffled, (spleen, liver), strict=True):
        assert words != text and sorted(words.split()) == sorted(text.split())
    for text, organs in (("poem", asked), ("description", ("duodenum",))):
        with pytest.raises(ValueError, match=f"No '{text}' of {', '.join(organs)}"):
            text_prompts(text, organs)
    assert TEXTS == ("description", "name", "shuffled description", "another's description", "one-hot")


# nnU-Net's dataset.json


def write(path: Path, labels: object) -> Path:
    path.write_text(json.dumps({"labels": labels}))
    return path


def test_ids_by_name_in_both_versions_of_nnunet(tmp_path: Path) -> None:
    names = {"background": 0, "Kidney_Right": 7, "gall bladder": 2, "postcava": 3, "bladder": 5}
    names["left adrenal gland (LAG)"] = 4
    for labels in (names, {str(i): name for name, i in names.items()}):
        path = str(write(tmp_path / "dataset.json", labels))
        assert label_ids(path) == {0: 0, 7: 2, 2: 9, 3: 6, 4: 8, 5: 0}
        assert labelled(path) == tuple(ORGANS[i - 1].key for i in (2, 6, 8, 9))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"liver": 1, "tumour": 2, "cyst": 3}, r"neither as organs nor as others \(tumour, cyst\)"),
        ({"liver": [1, 2]}, "does not hold nnU-Net's labels"),
        (["liver"], "does not hold nnU-Net's labels"),
        (None, "does not hold nnU-Net's labels"),
    ],
)
def test_names_that_stand_for_nothing_are_refused(labels: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        label_ids(str(write(tmp_path / "dataset.json", labels)))
    assert str(tmp_path / "dataset.json") in str(caught.value)


def test_an_unknown_map_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'Synapse' is no label map: choose one of FLARE22, BTCV"):
        labelled("Synapse")
    with pytest.raises(InputError, match="does not hold nnU-Net's labels"):
        label_ids(str(tmp_path / "gone.json"))
