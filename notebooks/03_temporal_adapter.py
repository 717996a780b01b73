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
# # 03 · The temporal adapter
#
# **Question.** Does a slice-wise model segment better when each slice sees its neighbours, and does its gate know when that
# is of use?
#
# **Reproduces.** Section 3 of *T-Gated Adapter*, the adapter's rows of Tables 2 and 3.
#
# | profile | time, training included |
# |---|---|
# | smoke | seconds |
# | demo | about 5 minutes on 2 cores, seconds once trained |
# | sample | about 5 minutes |
# | full | hours on one T4 |

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from lib import figures, report
from lib.clipseg import build
from lib.datasets import degraded_slices, stores_of
from lib.inference import slice_gates
from lib.profiles import HEADLINE, run_folder, settings_of
from lib.runs import evaluate, trained
from lib.volumes import read_labels, read_scan, to_uint8

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")

# %% [markdown]
# ## The parts
#
# Tokens of five slices are projected to a narrow width, a position in the window is added, and pre-norm layers attend across
# the slices, each token position on its own. The centre slice is projected back, passes a spatial self-attention block, and a
# gate mixes it with what the encoder said of the slice alone.
#
# The paper leaves open which of the decoder's three inputs are adapted. At full size the default is the deepest one (the one
# that meets the prompt first), while the other two pass as they are, so that the decoder keeps all three; `adapted="all"` is
# the other reading. The released code does neither (it hands its decoder one input instead of three).

# %%
settings = settings_of("adapter", PROFILE)
model = build(settings)
pd.Series(
    {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.adapter.named_children()
    },
    name="parameters",
).to_frame()

# %% [markdown]
# In the paper the gate starts almost shut: W = 0 and b = -5 let through 0.0067 of the temporal features, so that the model
# starts as the baseline. The demo has a few hundred steps where the paper has tens of thousands, and from there its gate does
# not open. So the demo, and the demo alone, starts it at b = 0 and adapts all three inputs: both chosen on validation scans.

# %%
# NBVAL_CHECK_OUTPUT
print(f"gate at the start: {torch.sigmoid(torch.tensor(-5.0)):.4f}")

# %% [markdown]
# ## Training, and a control
#
# Baseline and adapter differ in the adapter alone: same start, same data, same number of steps. More parameters could help by
# themselves, so a third run has the whole adapter but sees its centre slice five times: **centre only**.

# %%
for run in HEADLINE:
    evaluate(run, PROFILE)
figures.training_curves(PROFILE, HEADLINE)
# %% [markdown]
# ## Table 2: mean Dice
#
# The interval is a bootstrap over scans. The difference is taken scan by scan, so its interval is narrower than the two
# intervals beside it suggest.

# %%
scores = report.read_scores(PROFILE)
report.show(report.tgated_table2(scores))

# %% [markdown]
# ## Table 3: organ by organ
#
# The paper's own baseline column averages 0.519, not the 0.497 that it prints.

# %%
report.show(report.tgated_table3(scores, settings.test_on[0]))

# %% [markdown]
# ## On the scan
#
# The label map as a NIfTI file on the scan's own grid, read back and laid over the scan it belongs to: truth above, adapter
# below, the last scan of each test set. The reader refuses a label map whose grid or affine is not the scan's.

# %%
for dataset in settings.test_on:
    store = stores_of(settings, dataset)[-1]
    voxels, grid = read_scan(store.source.image)
    found = run_folder("adapter", PROFILE) / "predictions" / dataset / f"{store.id}.nii.gz"
    maps = {
        "truth": read_labels(store.source.labels, store.label_map, grid),
        "adapter": read_labels(found, "FLARE22", grid),
    }
    grey = to_uint8(voxels, store.modality, settings)
    shown = np.linspace(0, grey.shape[2] - 1, 8).astype(int)[1:-1]
    page, axes = plt.subplots(2, len(shown), figsize=(12, 4.2), layout="constrained")
    page.suptitle(f"{store.id} ({dataset}); {report.data_note(PROFILE)}")
    for row, (name, labels) in zip(axes, maps.items(), strict=True):
        for axis, z in zip(row, shown, strict=True):
            figures.slice_overlay(axis, grey[:, :, z].T, labels[:, :, z].T)
            axis.set_title(f"{name}, slice {z}")
    figures.save(page, f"label_maps_{dataset.replace(' ', '_')}", PROFILE)
    plt.show()

# %% [markdown]
# ## Temporal consistency
#
# Fewer false slices, and less of a prediction outside its largest piece, are what the adapter is for.

# %%
consistency = scores.groupby(["dataset", "run"]).agg(
    false_slices=("false_slices", "sum"),
    absent=("slices_absent", "sum"),
    off_component=("off_component", "mean"),
)
consistency.assign(share=consistency["false_slices"] / consistency["absent"]).round(3)

# %% [markdown]
# ## Does the gate know?
#
# Each slice has a mean gate value. In phantoms we know which slices were spoiled on purpose: there the gate should open wider.

# %%
adapter = trained("adapter", PROFILE)
rows = []
for store in stores_of(settings, settings.test_on[0]):
    spoiled = degraded_slices(store.source)
    rows += [
        {
            "case": store.id,
            "slice": z,
            "gate": gate,
            "slices": "spoiled" if z in spoiled else "clean",
        }
        for z, gate in enumerate(slice_gates(adapter, store, settings))
    ]
gates = pd.DataFrame(rows)
gates.groupby("slices")["gate"].describe()[["count", "mean", "std"]].round(3)

# %% [markdown]
# One test scan, from the feet to the head: the gate's value in every slice, spoiled slices marked.

# %%
one = gates[gates["case"] == gates["case"].iloc[0]]
page, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
axis.bar(
    one["slice"],
    one["gate"],
    color=["#c44" if kind == "spoiled" else "#888" for kind in one["slices"]],
)
axis.set(
    xlabel="slice, from the feet",
    ylabel="mean gate",
    title=f"{one['case'].iloc[0]}: spoiled slices in red",
)
plt.show()

# %% [markdown]
# **What we found in the demo run that is committed here** (one seed, ten test phantoms; the tables above hold the numbers):
#
# - The adapter is ahead of the baseline by two to three hundredths of Dice, with an interval clear of zero, and ahead of the
#   control by as much. So the gain comes from the neighbours, not from the added parameters. It is a tenth of what the paper
#   reports on patients with pretrained weights and a hundred times the steps.
# - It is not the same for every organ: the esophagus loses, as in the paper, and so do some others.
# - False slices are hardly fewer than the baseline's. The paper's picture of spurious detections that vanish is **not**
#   reproduced here.
# - The gate does **not** know in so short a training: it stands about as wide open on spoiled slices as on clean ones.
#
# Numbers of the demo come from phantoms. They say how the method behaves, not how well it works on patients.
