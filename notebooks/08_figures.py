# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Every table and figure
#
# **Question.** What came out, beside what the paper printed?
#
# **Reproduces.** Tables 1 to 5 and Figures 1 to 4 of *T-Gated Adapter*, and a ledger of its claims; Tables 2 and 3 and Figures 1
# to 8 of *Med-VLM on BTCV* (notebook 07 has the others). Everything here is read from `scores.csv` and small stored extracts, so
# that this notebook needs no training: seconds in every profile whose scores exist.

# %% [markdown] tags=["colab"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/08_figures.ipynb) On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing.

# %% tags=["colab"]
import os
import runpy
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/REPOSITORY"  # or your fork's, and @branch if not main
ON_DRIVE = False  # True: results on your Google Drive, where the next session takes them up

if "google.colab" in sys.modules:
    if not os.path.exists("../tools/colab.py"):
        address, branch = f"{REPOSITORY}@main".split("@")[:2]
        assert "/OWNER/" not in address, "Put your fork's address into REPOSITORY and run this cell again."
        if not os.path.exists(home := os.path.basename(address)):
            subprocess.run(["git", "clone", "--depth=1", "-b", branch, address, home], check=True)
        os.chdir(f"{home}/notebooks")
    runpy.run_path("../tools/colab.py", {"ON_DRIVE": ON_DRIVE}, run_name="colab")

# %%
import os
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Image, Markdown, display
from matplotlib.patches import FancyBboxPatch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from lib import clipseg, figures, tables
from lib.baselines import PatchSampler, build_dynunet, volume_losses
from lib.config import data_note, differences, settings_of
from lib.files import figures_root, results_root
from lib.med_vlm import build_med_vlm, build_unet, med_vlm_losses, unet_losses
from lib.organs import KEYS, ORGANS, labelled
from lib.statistics import average_drop, difference, mean, select
from lib.training import run
from lib.windows import SliceSampler, WindowSampler

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")
TRAIN = True  # False: files alone

# %% [markdown]
# Tables and figures are written by the notebooks 01 to 07, beside the scores. This one collects them, and puts the papers' claims
# beside what was measured. Where no headline run has been scored yet, it is trained now.

# %%
settings = settings_of("adapter", PROFILE)
HOME, *AWAY = settings.test_on
MRI = next((name for name in AWAY if name in ("site M", "AMOS22 MRI", "sample MRI")), "")
CT = [name for name in AWAY if name != MRI]
CLIPSEG, VLM = (clipseg.build, WindowSampler, clipseg.losses), (build_med_vlm, SliceSampler, med_vlm_losses)
HEADLINE = dict.fromkeys(("baseline", "adapter", "centre only"), CLIPSEG) | {"dynunet": (build_dynunet, PatchSampler, volume_losses)}
HEADLINE |= {"med-vlm large": VLM, "med-vlm small": VLM, "unet": (build_unet, SliceSampler, unet_losses)}
for name, parts in HEADLINE.items():
    run(name, settings_of(name, PROFILE), *parts, train=TRAIN)
scores = tables.read_table(PROFILE, "scores.csv")
print(f"{data_note(PROFILE)}: {len(scores)} rows, {scores['run'].nunique()} runs, {scores['case'].nunique()} scans")


# %%
def show(*names):
    """Tables as their Markdown files say, figures as pictures; what this profile has not made is named."""
    for name in names:
        table = results_root(PROFILE) / "tables" / f"{name}.md"
        picture = figures_root(PROFILE) / f"{name}.png"
        if table.is_file():
            display(Markdown(table.read_text(encoding="utf-8")))
        elif picture.is_file():
            display(Image(picture, width=720))
        else:
            print(f"{name}: not made in this profile yet")


# %% [markdown]
# ## T-Gated: Tables 1 to 5

# %%
show("tgated_table1", "tgated_table2", "tgated_table3", "tgated_table4", "tgated_table5")

# %% [markdown]
# ## T-Gated: Figure 1, where the pancreas is seen, slice by slice

# %%
show("tgated_fig1")

# %% [markdown]
# ## T-Gated: Figure 2, the architecture
#
# Parameters are counted on the model at full size (built without its weights) and on this profile's, part by part.

# %%
with torch.device("meta"):
    paper = settings_of("adapter", "full", weights="")
    base = CLIPSegForImageSegmentation(CLIPSegConfig(reduce_dim=64, extract_layers=[3, 6, 9]))
    full = clipseg.TextPromptedSegmenter(base, None, paper)
own = clipseg.build(settings_of("adapter", PROFILE)) if PROFILE not in ("full", "proof") else full


def parameters(model, *parts):
    """Number of parameters of modules by name, for a box of the figure."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(n for name, n in sizes.items() if any(f"{name}.".startswith(f"{part}.") for part in parts))


# %%
CLIP, DECODER = "base_model.clip", "base_model.decoder"
BOXES = {  # title: (what it does, modules, column, row)
    "5 slices": ("z-2 ... z+2", (), 0, 2),
    "CLIP vision encoder": ("tokens of blocks 3, 6, 9", (f"{CLIP}.vision_model",), 1, 2),
    "projection": ("eq. 1", ("adapter.proj_in", "adapter.temporal_pos_emb"), 2, 2),
    "temporal layers": ("attention over 5 slices", ("adapter.temporal_layers",), 3, 2),
    "spatial block": ("$h_{temporal}$", ("adapter.transformer_norm", "adapter.proj_out", "adapter.spatial_context"), 4, 2),
    "gate": ("eq. 2: $g h_{temporal} + (1-g) h_{single}$", ("adapter.gate_proj",), 4, 1),
    "decoder": ("3 levels, the deepest first", (DECODER,), 2, 1),
    "mask": ("logits", (), 1, 1),
    "text prompt": ('"pancreas"', (), 0, 0),
    "CLIP text encoder": ("FiLM of the decoder", (f"{CLIP}.text_model", f"{CLIP}.text_projection"), 1, 0),
}
ARROWS = [
    ("5 slices", "CLIP vision encoder"), ("CLIP vision encoder", "projection"), ("projection", "temporal layers"),
    ("temporal layers", "spatial block"), ("spatial block", "gate"), ("gate", "decoder"), ("decoder", "mask"),
    ("text prompt", "CLIP text encoder"), ("CLIP text encoder", "decoder"), ("CLIP vision encoder", "decoder"),
]  # fmt: skip

# %%
figures.theme()
figure, axis = plt.subplots(figsize=(7.2, 2.9))
boxes = {}
for title, (does, parts, column, row) in BOXES.items():
    x, y = 1.75 * column, 1.15 * row
    style = {"facecolor": "#eef3f8", "edgecolor": "#44607a"}
    boxes[title] = axis.add_patch(FancyBboxPatch((x, y), 1.4, 0.76, "round,pad=0.02", **style))
    counts = " / ".join(f"{parameters(m, *parts) / 1e6:.3g} M" for m in (full, own)) if parts else ""
    axis.text(x + 0.7, y + 0.38, f"{title}\n{does}\n{counts}".strip(), ha="center", va="center", fontsize=5)
for start, end in ARROWS:
    (*_, c0, r0), (*_, c1, r1) = BOXES[start], BOXES[end]
    ends = {"patchA": boxes[start], "patchB": boxes[end], "shrinkA": 1, "shrinkB": 1}
    middles = [(1.75 * c + 0.7, 1.15 * r + 0.38) for c, r in ((c1, r1), (c0, r0))]
    axis.annotate("", *middles, arrowprops={"arrowstyle": "-|>", "color": "#44607a", "linewidth": 0.8} | ends)
axis.set(xlim=(-0.1, 8.5), ylim=(-0.1, 3.2), aspect="equal")
axis.axis("off")
figures.save(
    figure,
    "tgated_fig2",
    "T-Gated Figure 2: the architecture. Numbers: parameters at full size / in this profile. The gate's output takes the place of "
    "the deepest of the decoder's three inputs (of all three in the demo); the others pass as they are.",
    PROFILE,
)

# %% [markdown]
# ## T-Gated: Figures 3 and 4
#
# The adapter at its best slices (Table 3 has its average), and the right kidney on MRI.

# %%
show("tgated_fig3", "tgated_fig4")

# %% [markdown]
# ## Med-VLM: Tables 1 to 4 and Figures 1 to 8

# %%
show(*(f"medvlm_table{number}" for number in (1, 2, 3, 4)))

# %%
show(*(f"medvlm_fig{number}" for number in range(1, 9)))

# %% [markdown]
# ## Both papers on common ground
#
# T-Gated's models and Med-VLM's on the same held-out scans, spleen and liver alone. The first two have never seen a scan of this
# site; all others learned from the same scans.

# %%
unet = settings_of("unet", PROFILE)
TEST, ASKED = (unet.test_on[0], unet.test_variant), unet.organs
rows = {}
for name in ("baseline", "adapter", "clipseg on BTCV", "adapter on BTCV", "med-vlm large", "med-vlm small", "unet", "unetr"):
    table, learned = select(scores, name, *TEST, seeds=[0], organs=ASKED), settings_of(name, PROFILE).train_on
    false, absent = (select(scores, name, *TEST, column=c, seeds=[0], organs=ASKED) for c in ("false_slices", "slices_absent"))
    title = tables.METHODS.get(name, tables.METHODS.get(name.removesuffix(" on BTCV")))
    if len(table):
        by_organ = {key: mean(select(scores, name, *TEST, seeds=[0], organs=[key])).value for key in ASKED}
        share = {"false slices (share)": false.sum().sum() / absent.sum().sum()}
        rows[f"{title}, trained on {learned}"] = {"mean Dice": mean(table)} | by_organ | share
tables.write(
    pd.DataFrame.from_dict(rows, orient="index").rename_axis("model"),
    "common_ground",
    f"The models of both papers on the same held-out scans of {TEST[0]}, spleen and liver alone. False slices: share of the slices "
    "without the organ in which it is predicted. One seed (0); 95 % bootstrap intervals over cases.",
    PROFILE,
)

# %% [markdown]
# ## The claims, one by one
#
# Every quantitative statement of the papers, ours beside it, and a verdict. On phantoms only a *direction* can be tested (who is
# ahead, over all stored seeds, with an interval clear of zero); a *size* waits for the full profile; a *setting* compares the full
# profile with the text; *arithmetic* puts the papers' own numbers together again.

# %%
claims = pd.read_csv("../published/claims.csv", dtype=str, keep_default_na=False).set_index("id")
measured, holds = {}, {}
pd.crosstab(claims["kind"], claims["paper"])

# %% [markdown]
# **Directions.** A difference of two means over all organs, or over some; a contrast of some organs' gain with the others'; false
# slices; drops.

# %%
def dice(name, dataset, condition="", column="dice", organs=KEYS):
    """(cases, seeds x organs) of a run."""
    return select(scores, name, dataset, "", condition, column, organs=organs)


def gain(dataset, *organs):
    """Adapter minus baseline, over all organs or some."""
    return difference(*(dice(name, dataset, organs=organs or KEYS) for name in ("baseline", "adapter")))


def contrast(dataset, *organs):
    """Gain of some organs minus that of the others, scan by scan."""
    one, two = (dice(name, dataset) for name in ("baseline", "adapter"))
    gaps = two.loc[two.index.intersection(one.index)] - one
    these = gaps.columns.get_level_values("organ").isin(organs)
    moved = gaps.loc[:, these].mean(axis=1) - gaps.loc[:, ~these].mean(axis=1)
    return mean(moved.to_frame())._replace(signed=True)


# %%
FOUR = ("pancreas", "stomach", "gallbladder", "right kidney")
measured |= {"flare-gain": gain(HOME), "largest-gains": contrast(HOME, *FOUR)}
measured |= {name.replace(" ", "-"): gain(HOME, name) for name in (*FOUR, "liver", "aorta", "esophagus")}
measured |= {"large-gain-less": contrast(HOME, "liver", "aorta"), "morphology": contrast(HOME, "pancreas", "stomach")}
for place, name in enumerate(("btcv", "amos")[: len(CT)]):
    measured |= {f"{name}-gain": gain(CT[place]), f"trend-{name}": contrast(CT[place], *FOUR)}
for claim, organs in (("false-slices", KEYS), ("false-pancreas", ("pancreas",))):
    measured[claim] = difference(*(dice(m, HOME, column="false_slices", organs=organs) for m in ("baseline", "adapter")))
for claim, condition in (("blank", "blank"), ("wrong", "wrong organ")):
    measured[claim] = difference(dice("adapter", HOME), dice("adapter", HOME, condition))

# %%
if CT:
    away = {name: [dice(name, site) for site in (HOME, *CT)] for name in ("baseline", "adapter")}
    measured["drop-smaller"] = average_drop(away["adapter"], away["baseline"])
if MRI:
    mri = {name: [dice(name, site) for site in (HOME, MRI)] for name in ("dynunet", "adapter")}
    measured["mri-better"] = difference(dice("dynunet", MRI), dice("adapter", MRI))
    measured["mri-decline"] = average_drop(mri["dynunet"])
    same = [table[sorted(set(table) & set(mri["dynunet"][0]))] for table in mri["adapter"]]  # DynUNet has one seed
    measured["mri-less-affected"] = average_drop(same, mri["dynunet"])

# %%
vlm = {name: select(scores, name, *TEST, organs=unet.organs) for name in ("med-vlm large", "med-vlm small", "unet")}
measured["medvlm-large-beats-unet"] = difference(vlm["unet"], vlm["med-vlm large"])
measured["medvlm-small-beats-unet"] = difference(vlm["unet"], vlm["med-vlm small"])
measured["medvlm-large-beats-small"] = difference(vlm["med-vlm small"], vlm["med-vlm large"])
logs = tables.read_table(PROFILE, "logs.csv")
ends = logs[logs["run"] == "med-vlm large"].dropna(subset=["training_dice"]).groupby("seed").tail(1)
measured["medvlm-overfit"] = mean((ends["training_dice"] - ends["validation_dice"]).to_frame())._replace(signed=True)

# %% [markdown]
# **Sizes.** Measured beside published; on phantoms they say nothing of the paper.

# %%
sizes = {"flare": HOME} | dict(zip(("btcv", "amos"), CT, strict=False))
for short, dataset in sizes.items():
    measured |= {f"{short}-{name}": mean(dice(name, dataset)) for name in ("baseline", "adapter")}
    measured[f"{short}-gain-size"] = gain(dataset)
measured |= {f"{short}-dice": mean(dice("adapter", HOME, c)) for short, c in (("blank", "blank"), ("wrong", "wrong organ"))}
measured |= {f"mri-{name}": mean(dice(name, MRI)) for name in ("adapter", "dynunet") if MRI}
measured |= {f"drop-{name}": average_drop(away[name]) for name in ("baseline", "adapter") if CT}
measured |= {f"medvlm-{name.split()[-1]}-dice": mean(table) for name, table in vlm.items()}

# %% [markdown]
# **Settings.** What the full profile does, as text, beside what the paper says.

# %%
s = settings_of("adapter", "full")
weights = {organ.key: organ.weight for organ in ORGANS}
measured |= {
    "base-model": "CLIPSeg ViT-B/16", "patch": s.patch, "loss": "1 : 1" if s.positive_weight == 1 else "weighted",
    "learning-rates": f"{s.lr_encoder:g}, {s.lr_decoder:g}, {s.lr_adapter:g}", "window": s.window, "adapter-width": s.adapter_width,
    "adapter-depth": s.adapter_depth, "drop-path": s.drop_path, "gate-penalty": s.gate_penalty, "slice-size": s.size,
    "gate-start": f"{s.gate_bias:g} (gate {1 / (1 + np.exp(-s.gate_bias)):.4f})", "rotation": f"{s.rotate_degrees:g}",
    "hu-window": f"{s.ct_window_hu[0]:g} to {s.ct_window_hu[1]:g}", "weight-decay": s.weight_decay, "restarts": s.restart_epochs,
    "negatives": f"1 per {1 / s.negatives_per_positive:.0f} ({s.negatives_per_positive:.3f})", "epochs": s.epochs, "batch": s.batch,
    "table1": "; ".join(f"{w:g}" for w in sorted(set(weights.values()), reverse=True)), "split": ", ".join(map(str, s.cases)),
    "precision": "float32 (mixed precision: no)" if s.precision == "no" else s.precision,
    "mri-percentiles": f"{s.mr_percentiles[0]:g} to {s.mr_percentiles[1]:g}", "test-scans": f"{s.cases[2]} of each",
}  # fmt: skip
measured["only-difference"] = ", ".join(differences(settings_of("baseline", "full"), s))
scans = [(of.train_on, of.cases, of.training_cases) for of in (s, settings_of("dynunet", "full"))]
measured["same-scans"] = "same scans" if scans[0] == scans[1] else "other scans"

# %% [markdown]
# **Arithmetic.** The papers' numbers against each other: what a reader can check with a pencil.

# %%
t2, t3 = tables.published("tgated_table2"), tables.published("tgated_table3")
rows = t3.loc[[key for key in KEYS if key in t3.index]]
means, printed = t2.loc[["baseline", "adapter"]], t2["FLARE22"]
for claim, site in (("gain-flare-sum", "FLARE22"), ("gain-btcv-sum", "BTCV"), ("gain-amos-sum", "AMOS22 CT")):
    measured[claim] = f"{means[site].diff().iloc[1]:+.3f}"
lost = 1 - means[["BTCV", "AMOS22 CT"]].mean(axis=1) / means["FLARE22"]
measured |= {f"drop-{name}-sum": f"{100 * lost[name]:.1f} %" for name in ("baseline", "adapter")}
measured["relative-from-means"] = f"{100 * (means['FLARE22'].iloc[1] / means['FLARE22'].iloc[0] - 1):+.0f} %"
measured["relative-from-gain"] = f"{100 * 0.206 / 0.497:+.0f} %"
measured |= {f"mean-{name}": f"{rows[name].mean():.3f}" for name in ("baseline", "adapter")}
measured["mean-gain"] = f"{rows['difference'].mean():+.3f}"
measured["same-means"] = "; ".join(f"{value:.3f}" for value in (*means["FLARE22"], 0.206))

# %%
right = (rows["adapter"] - rows["baseline"]).round(3).eq(rows["difference"])
measured["rows-differ"] = f"{right.sum()} of {len(rows)}"
measured["btcv-organs"] = str(len(labelled("BTCV")))
loss = means["FLARE22"] - means[["BTCV", "AMOS22 CT"]].mean(axis=1)
measured["drop-in-dice"] = " against ".join(f"{value:.4f}" for value in loss)
holds["drop-in-dice"] = loss["adapter"] < loss["baseline"]
first = rows["difference"].sort_values(ascending=False)
for claim, count in (("four-largest", 4), ("two-largest", 2)):
    measured[claim] = ", ".join(sorted(first.index[:count]))
    holds[claim] = set(first.index[:count]) == set(claims.loc[claim, "published"].split(", "))
measured["only-loss"] = ", ".join(first.index[first < 0])
small, others = first[["liver", "aorta"]].mean(), first.drop(["liver", "aorta"]).mean()
measured["large-less"], holds["large-less"] = f"{small:+.3f} against {others:+.3f}", small < others
measured["minor-loss"], holds["minor-loss"] = f"{first.min():+.3f}", abs(first.min()) < abs(first.drop("esophagus")).mean()
measured["volume-weighted"], holds["volume-weighted"] = f"plain means {rows['baseline'].mean():.3f} and {rows['adapter'].mean():.3f}", False
for claim, value in (("blank-sum", 0.005), ("wrong-sum", 0.011)):
    measured[claim] = f"{100 * (value / 0.704 - 1):.1f} %"


# %% [markdown]
# ## The table of claims

# %%
def verdict(claim):
    """One rule for each kind of claim."""
    kind, said, value = claims.loc[claim, "kind"], claims.loc[claim, "published"], measured.get(claim)
    if value is None or (isinstance(value, tuple) and np.isnan(value.value)):
        return "not run yet"
    if kind == "direction":
        if np.isnan(value.low):
            return "one training, no interval"
        low, high = (value.low, value.high) if said == "> 0" else (-value.high, -value.low)
        return "reproduced" if low > 0 else "contradicted" if high < 0 else "not reproduced"
    if kind == "size":
        return "measured on patients" if PROFILE == "full" else "not testable on phantoms"
    agrees = holds.get(claim, re.sub(r"[^\d.%:;,a-z-]", "", str(value)) == re.sub(r"[^\d.%:;,a-z-]", "", said))
    return "agrees" if agrees else "does not agree"


ledger = claims.assign(measured=[str(measured.get(claim, "–")) for claim in claims.index], verdict=[verdict(c) for c in claims.index])
ledger = ledger[["paper", "kind", "place", "claim", "published", "measured", "verdict"]]
pd.crosstab(ledger["kind"], ledger["verdict"])

# %%
for kind in ("direction", "setting", "arithmetic", "size"):
    part = ledger[ledger["kind"] == kind].drop(columns="kind").set_index("paper")
    caption = f"The papers' claims of the kind '{kind}', ours beside them. Directions over all stored seeds, 95 % intervals over cases."
    display(tables.write(part, f"claims_{kind}", caption, PROFILE))

# %% [markdown]
# **What does not hold** in this profile:

# %%
odd = ledger[ledger["verdict"].isin(["not reproduced", "contradicted", "does not agree"])]
display(Markdown("\n".join(f"- *{row.claim}* Published {row.published}, here {row.measured}: **{row.verdict}**." for row in odd.itertuples())))
