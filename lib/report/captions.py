"""What stands under each table: what differs in it, and over how many seeds and cases."""

import pandas as pd

from lib.profiles import MEDVLM_RUNS, Settings, settings_of

from .medvlm import COMMON, MODELS, held_out_scans
from .scores import provenance

SINGLE = "One seed; 95 % bootstrap intervals over cases, and a difference takes both methods on the same resampled cases."
SEVERAL = "Each row averages the seeds it counts, and a difference takes the same seeds; 95 % bootstrap intervals over cases (n)."
ABSENCE = "An organ that is absent counts 0 where it is predicted and is left out where it is not."
FALSELY = "False slices: share of the slices without the organ in which it is predicted."


def _of_the_paper(dataset: str, cases: str) -> dict[str, str]:
    return {
        "tgated_table2": (
            "T-Gated Table 2: mean Dice over organs of the mean over cases, published and measured; BTCV labels 12 of the 13 organs, so "
            "its mean is over 12. The average drop is the share of the Dice on FLARE22 that is lost on BTCV and AMOS22 CT (cases drawn "
            f"within each; n counts both). The paper prints a gain of 0.206 on FLARE22, where its means differ by 0.207. {SINGLE} {ABSENCE}"
        ),
        "tgated_table3": (
            f"T-Gated Table 3: Dice by organ, published (FLARE22) and measured ({dataset}); n: cases in which the organ is present or "
            f"predicted. The paper prints a mean of 0.497 for its baseline, whose rows average 0.519. {SINGLE} {ABSENCE}"
        ),
        "tgated_table4": (
            "T-Gated Table 4: the adapter asked by other prompts, with the same weights, published (FLARE22) and measured "
            f"({cases}); synonym and template go beyond the paper. {SINGLE}"
        ),
        "tgated_table5": (
            "T-Gated Table 5: mean Dice on MRI, which no model has seen in training, and the same weights' Dice on CT beside it. Baseline "
            f"and control go beyond the paper, which prints no difference: the published one is that of its two means. {SINGLE}"
        ),
    }


def _ablations(cases: str) -> dict[str, str]:
    return {
        "tgated_ablation_released": (
            "What the released code does otherwise than the paper says, one departure at a time and all together, on "
            f"{cases}; a departure that touches one method leaves the other as published. {SEVERAL}"
        ),
        "tgated_ablation_parts": (
            f"The adapter without one of its parts, or with another number of slices in its window, on {cases}. {FALSELY} {SEVERAL}"
        ),
        "tgated_ablation_controls": (
            "The adapter against the baseline, and against adapters that see the centre slice alone, their neighbours in another order, or "
            f"slices of another patient, on {cases}. {FALSELY} {SEVERAL}"
        ),
        "tgated_ablation_doses": (
            "The same models on the same test phantoms with other shares of slices that cannot be read alone; they were trained with "
            f"{100 * Settings.degraded:.0f} %. {SEVERAL} Least and greatest seed: the differences of single trainings."
        ),
        "tgated_ablation_spacings": (
            "The same adapter with its fixed window and with the slices nearest to its training's distances in mm, by distance of the test "
            f"scans' slices; at the training's own distance the two are the same. {SEVERAL}"
        ),
        "tgated_ablation_absent": (
            "Organs that a scan does not show, asked for all the same: scans without the organ, the share of them in which it is claimed, "
            "and the median claimed volume where it is. One seed; where their numbers of scans differ, the methods are not scored on the "
            "same scans."
        ),
    }


def _statistics(cases: str) -> dict[str, str]:
    return {
        "tgated_tests": (
            f"Adapter minus baseline by organ on {cases}: mean difference, p of Wilcoxon's two-sided signed-rank test over cases, and "
            f"Holm's correction of it for all organs tested. {SINGLE}"
        ),
        "tgated_consistency": (
            f"Consistency along the scan on {cases}: slices in which an organ is predicted and absent, and the share of a prediction "
            f"outside its largest 3-D component; differences are to the baseline. {SINGLE}"
        ),
        "tgated_conventions": (
            f"The same masks of {cases} under each convention of the mean: how much of a number is the way of counting. {SINGLE}"
        ),
    }


def _of_the_samplers(cases: str) -> dict[str, str]:
    return {
        "tgated_ablation_samplers": (
            "Both samplers give every slice and organ the same expected weight. The paper's (shuffled) draws each term by itself, with a "
            "window of its own; slabs draw neighbouring centres and several prompts together, so that a slice is encoded once for all of "
            f"them. Trained with as many steps and about as many terms in each, scored on {cases}. Seconds: a processor's for a step on "
            f"one thread, where the tables were made, times the steps. {SEVERAL}"
        ),
    }


def captions(scores: pd.DataFrame, dataset: str) -> dict[str, str]:
    """{table: its caption}. Tables of single trainings say where their scores come from."""
    plain = scores[(scores["dataset"] == dataset) & (scores["condition"] == "")]
    cases = f"{plain['case'].nunique()} cases of {dataset}"
    sources = "Scores: " + "; ".join(f"{run}: {source}" for run, source in provenance(scores).items()) + "."
    texts = _of_the_paper(dataset, cases) | _ablations(cases) | _of_the_samplers(cases) | _statistics(cases)
    return {
        "tgated_table1": "T-Gated Table 1: sampling weights, published and used here.",
        "tgated_seeds": (
            "Mean Dice of the headline runs on every data set: each row is one training, which differs from its run's others in the seed "
            "alone. 95 % bootstrap intervals over cases (n)."
        ),
        **{name: text if SEVERAL in text else f"{text} {sources}" for name, text in texts.items()},
    }


def _sizes_of_med_vlm() -> str:
    large, small = (settings_of(run, "full") for run in ("med-vlm large", "med-vlm small"))
    return (
        "Med-VLM Table 2: millions of parameters, published and counted here, at the paper's size and at this profile's. The paper leaves "
        "open the layers and the MLP width of the feature mixer, LoRA's rank, and the width and layers of the mask decoder. At full "
        f"size, {large.mixer_depth} layers with MLPs {large.mixer_mlp} times as wide as their tokens, rank {large.lora_rank} and "
        f"{large.mask_depth} decoder layer serve both sizes, and only the decoder's width differs ({large.mask_width} in Large, "
        f"{small.mask_width} in Small). The encoders' poolers are left out. The U-Net is MONAI's BasicUNet with "
        f"{settings_of('unet', 'full').filters[0]} first features."
    )


def _prompts_of_med_vlm(held_out: str) -> dict[str, str]:
    return {
        "medvlm_table1": (
            "Med-VLM Table 1: what each organ is asked by, as printed. Only spleen and liver are asked for, in the paper and here. The "
            "paper's text words the liver's prompt a little otherwise than its table."
        ),
        "medvlm_prompts": (
            "What Med-VLM is asked by. Above: Small, trained and asked by one kind of text, against the one trained and asked by the "
            "descriptions; one-hot has an embedding of the organ in the text encoder's place. Below: models trained by the descriptions "
            f"and asked by other words with the same weights (seed 0), against the same weights asked by the descriptions. "
            f"{held_out} {SEVERAL}"
        ),
    }


def medvlm_captions(scores: pd.DataFrame, profile: str) -> dict[str, str]:
    """{table: its caption} of the Med-VLM paper's tables. Those with single trainings say where their scores come from."""
    settings, dataset = settings_of("unet", profile), held_out_scans(profile)
    own = scores["run"].str.partition(", seed ")[0].isin(list(MEDVLM_RUNS)) & (scores["dataset"] == dataset)
    held_out = f"Held out: {scores.loc[own, 'case'].nunique()} cases ({dataset}), which validate the curves and choose no weights."
    logged = "training Dice is one over at most as many training scans as there are to validate, without augmentation"
    steps = "" if settings.epoch_steps else " Fewer scans make shorter epochs, and so fewer steps."
    fresh = "The first two learned from FLARE22 alone (zero-shot). " if settings_of("baseline", profile).train_on == "FLARE22" else ""
    table3, common = (
        "Scores: " + "; ".join(f"{run}: {source}" for run, source in provenance(scores, runs).items()) + "." for runs in (MODELS, COMMON)
    )
    return {
        **_prompts_of_med_vlm(held_out),
        "medvlm_table2": _sizes_of_med_vlm(),
        "medvlm_table3": (
            "Med-VLM Table 3: mean Dice of spleen and liver, published and measured. Best: the highest value over the epochs of seed 0, as "
            "the paper takes it, which is optimistic, because the validation scans choose the epoch; the paper's 0.97 of UNETR is cited "
            "from UNETR's own paper, on other scans. Held-out Dice, by organ too, is that of the last step's weights. The difference is "
            f"taken at the last epoch; {logged}. {held_out} {SEVERAL} {table3}"
        ),
        "medvlm_table4": (
            "Med-VLM Table 4 and sections 3.3 to 3.5: how the models are trained, published and in this profile. Duplicate slices: a slice "
            "counts once for each organ that it is asked for."
        ),
        "medvlm_cases": (
            "Med-VLM Small and the U-Net trained on fewer scans, with all other settings the same: Dice at the end of the training, and "
            f"the gap between training and held-out scans at the last epoch; {logged}.{steps} {held_out} {SEVERAL}"
        ),
        "medvlm_turns": (
            "The published flips and 90-degree turns of training slices against none, with all other settings the same. "
            f"{held_out} {SEVERAL}"
        ),
        "common_ground": (
            f"The models of both papers on the same scans, spleen and liver alone. {fresh}{FALSELY} {held_out} One seed (0); 95 % "
            f"bootstrap intervals over cases (n). {common}"
        ),
    }
