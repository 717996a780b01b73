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
# # 05 · Zero-shot: other sites
#
# **Question.** What is left of the models at two sites that they have never seen, and is the adapter's loss smaller?
#
# **Reproduces.** Table 2 of *T-Gated Adapter* with its average cross-domain drop.
#
# | profile | sites | time |
# |---|---|---|
# | smoke | tiny phantoms of every site | seconds |
# | demo | phantoms of two other sites | seconds once trained |
# | sample | none: there is one CT | seconds |
# | full | 10 cases each of BTCV and AMOS22 CT | minutes on one T4 |

# %% [markdown] tags=["colab"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/05_zero_shot.ipynb) On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing.

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

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd

from lib import figures, report
from lib.datasets import stores_of
from lib.organs import KEYS, labelled
from lib.profiles import settings_of
from lib.runs import evaluate

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")

# %% [markdown]
# ## The sites
#
# Nothing is adapted: the weights, the prompts and the grey window are those of the training. What differs is the scanner:
# spacing, noise and contrast, here as the stores hold them. The two data sets number the organs otherwise, and BTCV labels 12
# of the 13: it has no duodenum, so its mean is a mean over 12.

# %%
settings = settings_of("adapter", PROFILE)
sites = [name for name in settings.test_on if "MRI" not in name]
stores = {name: stores_of(settings, name) for name in sites}
{name: f"{len(found)} scans" for name, found in stores.items()}

# %%
first = {
    name: {
        "voxel in mm": " x ".join(f"{mm:g}" for mm in found[0].grid.spacing_mm),
        "slices": len(found[0].image),
        "stored as": "".join(nib.aff2axcodes(found[0].grid.affine)),
        "organs labelled": len(labelled(found[0].label_map)),
    }
    for name, found in stores.items()
}
pd.DataFrame(first).T.rename_axis("first scan of")

# %% [markdown]
# A middle slice of the first scan of each site with its organs, and the grey values inside the body (patient's right on the
# left, front up). In the demo the slice of FLARE22 happens to be clean and the two others happen to be spoiled: the pictures do not
# compare the sites. At each about two fifths of all slices are spoiled (45, 35 and 39 %).

# %%
page, axes = plt.subplots(2, len(sites), figsize=(3.4 * len(sites), 5), squeeze=False)
page.suptitle(f"Sites; {report.data_note(PROFILE)}", fontsize=9)
for (above, below), (name, found) in zip(axes.T, stores.items(), strict=True):
    middle = len(found[0].image) // 2
    figures.slice_overlay(above, found[0].image[middle], found[0].labels[middle])
    above.set_title(f"{name}, slice {middle}", fontsize=9)
    grey = np.concatenate([store.image[store.image > 0] for store in found])
    below.hist(grey, 64, range=(1, 255), density=True, color="#888")
    below.set(xlabel="grey value", yticks=[])
plt.show()

# %% [markdown]
# ## Table 2: mean Dice, and the average drop
#
# Look at the two measured columns of other sites and at the last one. The drop is the mean over the two sites of the share of
# the Dice on FLARE22 that is lost. Its interval draws cases at each site anew.

# %%
for run in ("baseline", "adapter", "centre only"):
    evaluate(run, PROFILE)
scores = report.read_scores(PROFILE)
report.show(report.tgated_table2(scores)).T

# %% [markdown]
# ## Organ by organ
#
# The difference adapter minus baseline in each organ, at every site (one seed). The paper's claim is that the pattern stays. In
# the demo ten organs keep their sign at every site that labels them. Three do not: the aorta (+0.013 on FLARE22, -0.020 and -0.015
# elsewhere), the gallbladder, and the left kidney, which stays within 0.005 of zero. The ledger tests the four organs that the
# paper names.

# %%
by_organ = {
    name: report.tgated_table3(scores, name).set_index("organ")["measured difference"]
    for name in sites
}
pd.DataFrame(by_organ).iloc[: len(KEYS)].round(3)

# %% [markdown]
# **What we found in the demo run that is committed here** (phantoms; the tables hold the numbers):
#
# - The adapter's lead over the baseline holds at the other sites: over three seeds 0.018 [0.014, 0.022] at BTCV (by seed 0.013,
#   0.022, 0.020) and 0.018 [0.014, 0.021] at AMOS22 CT (0.014, 0.019, 0.021), as on FLARE22. Over the control that sees no
#   neighbours it is 0.019 [0.015, 0.023] and 0.020 [0.014, 0.024]. The direction of the paper's claim is reproduced.
# - That the adapter **shrinks the drop is not reproduced**, because there is no drop to shrink: at -1.7 % and -1.2 % it is slightly
#   negative, a gain, with intervals that include zero. The phantom sites differ in spacing, noise and contrast, but none is clearly
#   harder than FLARE22's. The paper's drop is that of real scanners, and waits for the full profile.
# - The paper's arithmetic: from its own Table 2 the baseline drops by 37.9 %, printed as 38.0. In absolute Dice the two methods
#   drop nearly alike (0.189 against 0.176): most of the smaller *relative* drop comes from a higher start.
