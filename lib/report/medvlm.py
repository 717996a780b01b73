"""Published against measured: Med-VLM's Tables 1 to 4, and what its paper leaves open, from stored scores, logs and sizes alone.

`profile` says which scans are held out, which settings the runs have and whose extracts are read; by default as in `settings_of`. Only
the organs ASKED count, whatever else a run was scored on.
"""

from collections.abc import Collection
from typing import Any

import pandas as pd

from lib.organs import DESCRIPTIONS, TEXTS
from lib.profiles import ASKED, ASKED_OTHERWISE, BY_CASES, BY_TEXT, MEDVLM_HEADLINE, WITHOUT_TURNS, settings_of
from lib.published import MEDVLM_TABLE2, MEDVLM_TABLE3, MEDVLM_TABLE4, MEDVLM_UNETR, NAN
from lib.statistics import difference, mean_over_organs, mean_with_interval

from .ablations import false_share, seeds_of, side_by_side
from .formatting import cells
from .scores import METHODS, read_stored

MODELS = {"med-vlm large": "Med-VLM Large", "med-vlm small": "Med-VLM Small", "unet": "2D U-Net", "unetr": "UNETR"}
ON_BTCV = {"clipseg on BTCV": f"{METHODS['baseline']} on BTCV", "adapter on BTCV": f"{METHODS['adapter']} on BTCV"}
COMMON = {run: METHODS[run] for run in ("baseline", "adapter")} | ON_BTCV | MODELS
GAP = "difference training - held out"
# How a kind of model is asked and taught (lib.slices, lib.med_vlm): task, loss, mask type, duplicate slices
TAUGHT = {
    "med-vlm": ("Single-organ", "BCE + Dice", "Binary", "Yes, in the same step"),
    "unet": ("Multi-organ", "CE + Dice", "Non-binary", "No"),
}


def held_out_scans(profile: str | None = None) -> str:
    """Name of the data set that Med-VLM's runs are scored on."""
    return settings_of("med-vlm small", profile).test_on[0]


def _asked(scores: pd.DataFrame, run: str, dataset: str, seeds: Collection[int], condition: str = "", column: str = "dice") -> pd.DataFrame:
    """`side_by_side` of the organs ASKED: (cases, seeds x 2), or (0, 2) without seeds."""
    table = side_by_side(scores, run, dataset, seeds, condition, column)
    return table.loc[:, table.columns.get_level_values(-1).isin(ASKED)]


def _by_organ(table: pd.DataFrame) -> dict[str, float]:
    """Columns of the mean over seeds and cases of each organ ASKED."""
    organ = table.columns.get_level_values(-1)
    return {key: float(mean_over_organs(table.loc[:, organ == key].to_numpy())) for key in ASKED}


def _curves(profile: str | None) -> pd.DataFrame:
    """The stored training logs of all Med-VLM runs, those rows alone that end an epoch. InputError: they are not stored."""
    table = read_stored(settings_of("unet", profile).profile, "medvlm_curves.csv")
    table = table.astype(dict.fromkeys(("step", "training_dice", "validation_dice"), float))  # objects where the file has no rows
    return table.dropna(subset=["validation_dice"]).sort_values("step", kind="stable")


def _last_epoch(curves: pd.DataFrame, run: str, seeds: Collection[int]) -> tuple[float, float]:
    """Training Dice at the last epoch, and by how much it exceeds the validation's: means over those of the seeds that have a log."""
    names = {f"{run}, seed {seed}" if seed else run for seed in seeds}
    ends = curves[curves["run"].isin(names)].drop_duplicates("run", keep="last")
    return float(ends["training_dice"].mean()), float((ends["training_dice"] - ends["validation_dice"]).mean())


def medvlm_table1() -> pd.DataFrame:
    """What each structure of BTCV is asked by, as Table 1 prints it, its number of words, and whether it is asked for here."""
    rows = [(key.capitalize(), text, len(text.split()), "yes" if key in ASKED else "no") for key, text in DESCRIPTIONS.items()]
    return pd.DataFrame(rows, columns=["organ", "prompt", "words", "asked here"])


def _millions(table: pd.DataFrame, run: str, scope: str) -> tuple[float, float, float]:
    """Trainable, frozen and all parameters of a model in one of the stored scopes; NaN where it is not stored."""
    rows = table[(table["run"] == run) & (table["scope"] == scope)]
    trainable, frozen = rows[["trainable", "frozen"]].to_numpy(float)[0] / 1e6 if len(rows) else (NAN, NAN)
    return float(trainable), float(frozen), float(trainable + frozen)


def medvlm_table2(profile: str | None = None) -> pd.DataFrame:
    """Millions of parameters: published, counted at full size, and the profile's own where they are stored.

    Raises:
        InputError: no counts are stored.
    """
    profile = settings_of("unet", profile).profile
    table, rows = read_stored(profile, "medvlm_parameters.csv"), []
    for run, printed in MEDVLM_TABLE2.items():
        row: dict[str, Any] = {"model": MODELS[run]}
        sizes = zip(("trainable", "frozen", "total"), printed, _millions(table, run, "full"), _millions(table, run, profile), strict=True)
        for part, published, full, own in sizes:
            row |= {f"{part} published (M)": f"{published:g}", f"{part} here (M)": full}  # as text: the paper prints no third decimal
            row[f"{part} difference in %"] = 100 * (full / published - 1) if published else NAN
            row |= {f"{part} {profile} (M)": own} if profile != "full" and profile in set(table["scope"]) else {}
        rows.append(row)
    return pd.DataFrame(rows)


def medvlm_table3(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """Best Dice over epochs, published and measured (seed 0), and what the last step's weights reach on the held-out scans (all seeds).

    The difference is training minus validation Dice at the last epoch, over the seeds of the row. UNETR's log has no training Dice.
    """
    dataset, curves, rows = held_out_scans(profile), _curves(profile), []
    for run, name in MODELS.items():
        seeds, first = seeds_of(scores, run, dataset), curves[curves["run"] == run]
        table = _asked(scores, run, dataset, seeds)
        printed = MEDVLM_TABLE3.get(run, (NAN, MEDVLM_UNETR))
        row: dict[str, Any] = {"model": name if run in MEDVLM_TABLE3 else f"{name} (published: cited)"}
        row |= dict(zip(("published best training", "published best validation"), printed, strict=True))
        row |= {f"measured best {part}": float(first[f"{part}_dice"].max()) for part in ("training", "validation")}
        row |= cells("held-out Dice", mean_with_interval(table)) | _by_organ(table)
        rows.append(row | {GAP: _last_epoch(curves, run, seeds)[1], "seeds": len(seeds)})
    return pd.DataFrame(rows)


def _set_up(run: str, profile: str | None) -> tuple[str, ...]:
    """A run's own column of Table 4, in the order of MEDVLM_TABLE4's values."""
    settings = settings_of(run, profile)
    words = f"{settings.text.capitalize()} + " if settings.model == "med-vlm" else ""
    encoders = [settings.vit or (settings.start_from and f"run {settings.start_from!r}"), settings.bert]
    return (
        f"{words}CT slice of {settings.size} x {settings.size}",
        f"Yes: {' and '.join(filter(None, encoders))}" if any(encoders) else "No",
        *TAUGHT[settings.model],
        f"{settings.epochs}" + (f" of {settings.epoch_steps} steps" if settings.epoch_steps else ""),
        f"{settings.lr_unet:g}",
        "Yes" if settings.turns else "No",
    )


def medvlm_table4(profile: str | None = None) -> pd.DataFrame:
    """How each model is trained: as the paper's Table 4 and sections 3.3 to 3.5 say, and in this profile."""
    table: dict[str, Any] = {"set-up": list(next(iter(MEDVLM_TABLE4.values())))}
    for run, printed in MEDVLM_TABLE4.items():
        table |= {f"{MODELS[run]} published": list(printed.values()), f"{MODELS[run]} here": list(_set_up(run, profile))}
    return pd.DataFrame(table)


def _worded(scores: pd.DataFrame, dataset: str, asked: tuple[str, str], described: tuple[str, str]) -> dict[str, Any]:
    """Columns of a (run, condition), and its difference to a run asked by the description; a condition takes seed 0 alone."""
    own, reference = (seeds_of(scores, run, dataset, condition) for run, condition in (asked, described))
    own = own & {0} if asked[1] else own
    common = own & reference
    shown = common or own  # with nothing to compare it to, a run still has its Dice
    table = _asked(scores, asked[0], dataset, shown, asked[1])
    one, two = (_asked(scores, run, dataset, common, condition) for run, condition in (described, asked))
    row = cells("mean Dice", mean_with_interval(table)[:3])
    row |= cells("difference to the description", (NAN,) * 3 if asked == described else difference(one, two))
    return row | _by_organ(table) | {"n": len(table), "seeds": len(shown)}


def medvlm_prompts(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """Small trained and asked by each of TEXTS, over the seeds that the description has, too; then both sizes asked otherwise."""
    small = BY_TEXT["description"]
    pairs = {f"Small, trained and asked by {text}": ((BY_TEXT[text], ""), (small, "")) for text in TEXTS}
    for run in (small, "med-vlm large"):
        size = MODELS[run].removeprefix("Med-VLM ")
        pairs |= {f"{size}, trained by description, asked by {text}": ((run, text), (run, "")) for text in ASKED_OTHERWISE}
    dataset = held_out_scans(profile)
    return pd.DataFrame([{"prompts": name} | _worded(scores, dataset, *pair) for name, pair in pairs.items()])


def medvlm_cases(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """Small and the U-Net by number of training scans: Dice on training and held-out scans, and the gap between the two.

    Rows bear the numbers of the full profile; `training scans` has those of this one, where they are known (the samples are slabs).
    Training Dice and gap are of the last epoch, over those of the row's seeds whose log is stored.
    """
    dataset, curves, rows = held_out_scans(profile), _curves(profile), []
    for method, fewer in BY_CASES.items():
        for number, run in (fewer | {MEDVLM_HEADLINE[method]["cases"][0]: method}).items():
            settings, seeds = settings_of(run, profile), seeds_of(scores, run, dataset)
            table, (training, gap) = _asked(scores, run, dataset, seeds), _last_epoch(curves, run, seeds)
            scans = NAN if settings.train_on == "samples" else settings.training_cases or settings.cases[0]
            row: dict[str, Any] = {"model": f"{MODELS[method]}, {number} cases", "training scans": scans, "training Dice": training}
            row |= cells("held-out Dice", mean_with_interval(table)[:3])
            rows.append(row | {GAP: gap, "n": len(table), "seeds": len(seeds)})
    return pd.DataFrame(rows).astype({"training scans": "Int64"})


def medvlm_turns(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """The published flips and turns against none, over the seeds that both have; a run without its counterpart has its own."""
    dataset, rows = held_out_scans(profile), []
    for without in WITHOUT_TURNS:
        run = without.partition(", ")[0]
        there = {each: seeds_of(scores, each, dataset) for each in (run, without)}
        common = set.intersection(*there.values())
        shown = [_asked(scores, each, dataset, common or own) for each, own in there.items()]
        row: dict[str, Any] = {"model": MODELS[run]}
        for name, table in zip(("flips and turns (published)", "without"), shown, strict=True):
            row |= cells(name, mean_with_interval(table)[:3])
        row |= cells("difference without - with", difference(*shown) if common else (NAN,) * 3)
        rows.append(row | {"n": max(map(len, shown)), "seeds": len(common or set.union(*there.values()))})
    return pd.DataFrame(rows)


def common_ground(scores: pd.DataFrame, profile: str | None = None) -> pd.DataFrame:
    """The models of both papers on the same held-out scans, seed 0: what they learned from, Dice, and slices claimed without the organ."""
    dataset, rows = held_out_scans(profile), []
    for run, name in COMMON.items():
        settings, seeds = settings_of(run, profile), seeds_of(scores, run, dataset) & {0}
        dice, false, absent = (_asked(scores, run, dataset, seeds, column=c) for c in ("dice", "false_slices", "slices_absent"))
        number = "" if settings.train_on == "samples" else f", {settings.training_cases or settings.cases[0]} scans"
        row: dict[str, Any] = {"model": name, "trained on": f"{settings.train_on}{number}"}
        row |= cells("mean Dice", mean_with_interval(dice)) | _by_organ(dice)
        rows.append(row | {"false slices (share)": false_share(false, absent)})
    return pd.DataFrame(rows)
