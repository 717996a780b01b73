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
# # 09 · Your scan, your words
#
# **Question.** What do the baseline and the adapter find in a scan of yours, and what do they make of words that nobody trained
# them on?
#
# **Reproduces.** No table: it puts the models of *T-Gated Adapter* (section 3) and its prompt test (section 4.4) into your hands.
#
# | profile | scan | time, training included |
# |---|---|---|
# | smoke | a tiny phantom | seconds |
# | demo | a phantom, or yours | about 5 minutes on 2 cores, seconds once trained |
# | sample | a slab of a real CT, or yours | about 5 minutes |
# | full | yours | a minute a scan on one T4, once trained |
#
# Models of the demo have seen **phantoms alone**: they run on a real scan, and what they say of it means nothing. Weights of the
# full profile are for research. Nothing here is a medical device.

# %% [markdown] tags=["colab"]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPOSITORY/blob/main/notebooks/09_your_scan.ipynb) On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing.

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

import numpy as np
import pandas as pd

from lib.datasets import cases_of
from lib.inference import slice_gates
from lib.organs import PROMPTS
from lib.profiles import settings_of
from lib.runs import trained
from lib.scans import load_checkpoint, read_any, segment_scan
from lib.viewer import EncodedSlice, Playground, Solid, Viewer, scene_of, store_of
from lib.volumes import read_labels

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")
SCAN = ""  # a .nii or .nii.gz file, or a folder of DICOM files; empty: a test scan of the profile
ASK = PROMPTS  # organs or any other text: ("liver", "spleen", "a bright vessel")
RUNS = ("baseline", "adapter")  # runs, their folders, or weights

# %% [markdown]
# ## A scan
#
# Without a `SCAN` of yours, the first scan of the first test set, taken because it is the first. Its truth is known, so that
# false positives can be told. Models that are not trained yet are trained now.

# %%
settings = settings_of("adapter", PROFILE)
if not SCAN:
    for run in RUNS:
        trained(run, PROFILE)
case = None if SCAN else cases_of(settings, settings.test_on[0])[0]
scan = SCAN or case.image
voxels, grid, _ = read_any(scan)
print(
    f"{voxels.shape} voxels of {np.round(grid.spacing_mm, 2)} mm, values {voxels.min():.0f} to {voxels.max():.0f}"
)

# %% [markdown]
# ## Organs by name
#
# One call does all: it reads the scan, encodes each slice once, asks every prompt, and brings the masks back onto the scan's own
# grid. With `out="a_folder"` it writes the label map (NIfTI, and a DICOM segmentation for a DICOM scan) and the table of volumes;
# `make segment SCAN=... PROMPTS="liver,spleen" OUT=...` is the same function. The note says what the model may claim.

# %%
found = {run: segment_scan(scan, ASK, run, profile=PROFILE) for run in RUNS}
last = found[RUNS[-1]]
print(last.note)

# %% [markdown]
# A *scene* is what the pictures below are drawn from: the scan, each model's label map, the truth where it is known, and the
# adapter's gate.

# %%
model, model_settings = load_checkpoint(RUNS[-1], PROFILE)
store = store_of(last, model_settings)
gate = slice_gates(model, store, model_settings)
truth = read_labels(case.labels, case.label_map, grid) if case else None
label_map = case.label_map if case else "FLARE22"
scene = scene_of(voxels, found, truth, label_map, {RUNS[-1]: gate} if gate.size else {})

# %% [markdown]
# Volumes in millilitres. An organ that reaches the first or last slice is *cut*: a part of it may lie outside of the scan.

# %%
voxel_ml = np.prod(grid.spacing_mm) / 1000
volumes = pd.DataFrame({run: s.volumes.set_index("prompt")["ml"] for run, s in found.items()})
if case:
    true_ml = {scene.names[i]: voxel_ml * np.count_nonzero(truth == i) for i in scene.known}
    volumes.insert(0, "truth", pd.Series(true_ml))
volumes["cut"] = last.volumes["cut"].to_numpy()
volumes.round(1)

# %% [markdown]
# In the demo both models make the liver and the left kidney too large and the right kidney too small, and neither finds the right
# adrenal gland. A volume that is right can still lie in the wrong place, so look at the slices.
#
# ## Slice by slice
#
# In a running notebook (JupyterLab, VS Code, Colab) this is a viewer: a slider through the slices, a box for each organ, the grey
# window. In the printed notebook it is a picture of one slice. The patient's right is on the left and the front is up. What a
# model claims and the truth does not have is cyan.

# %%
viewer = Viewer(scene)
viewer

# %% [markdown]
# The viewer opens on a slice that shows most organs; this one is grainy, for it was spoiled on purpose, as two fifths of a
# phantom's are. Both models find the large organs and lose the small ones, and both spill over the liver's edge: the demo's models
# see 48 pixels a side.
#
# ## Where it listens to its neighbours
#
# The same viewer with the gate's map over the adapter's panel, from the scan's lowest value (violet) to its highest (yellow):
# bright patches take more from the neighbouring slices. The range stands above the panel; in the demo it is narrow, and
# [03](03_temporal_adapter.ipynb) finds that the gate does not open wider on spoiled slices.

# %%
Viewer(scene, gate=True)

# %% [markdown]
# ## A playground of prompts
#
# Type any text. The slice is encoded once, so that a prompt costs the text encoder and the decoder alone. The list compares it
# with the 13 trained prompts in two ways: how near its text is to theirs, and how much its mask overlaps with theirs. The longest
# bar of each has a frame. It opens with *lien*, an anatomist's word for the spleen.

# %%
playground = Playground(model, model_settings, last, viewer.slice.value)
playground

# %% [markdown]
# More words asked of the same slice: a name it knows, the synonym, a description, the Greek name, nonsense, and nothing at all.

# %%
WORDS = ("liver", "lien", "the big organ on the right", "hepar", "a bicycle", "")
encoded = EncodedSlice(model, store, viewer.slice.value, model_settings)
answers = [encoded.ask(word) for word in WORDS]
pd.DataFrame(
    {
        "nearest text": [a.by_text for a in answers],
        "cosine": [round(a.cosines[a.by_text], 2) for a in answers],
        "nearest mask": [a.by_mask or "none" for a in answers],
        "Dice": [round(a.overlaps[a.by_mask], 2) if a.by_mask else np.nan for a in answers],
    },
    index=pd.Index([f"“{word}”" for word in WORDS], name="prompt"),
)

# %% [markdown]
# In the demo, *lien* is taken for the **liver**, by text and by mask: the small text encoder reads bytes, has seen 13 names, and
# goes by spelling. A cosine always names some organ, even for a bicycle, so it is no measure of understanding; that the mask stays
# empty is the better sign. CLIP's encoder, at full size, has read the web; [04](04_ablations.ipynb) measures what words do.
#
# ## In three dimensions
#
# Turn the organs with the mouse where ipyniivue and WebGL are there; printed, they are seen from the front, the patient's right on
# the left.

# %%
Solid(scene)

# %% [markdown]
# Streaks are slices in which an organ is claimed and its neighbours say nothing of it: many of them are what the tables call false
# slices. Both models have plenty in the demo's phantom, and the picture is too small to tell which has more (by count 36 of the
# baseline's slices are false and 32 of the adapter's); [03](03_temporal_adapter.ipynb) counts them over all test scans and seeds.
#
# ## With a scan of yours
#
# - Here: set `SCAN` in the parameters cell to a file or a folder, `ASK` to what you look for, and run all cells.
# - From a terminal: `make segment SCAN=ct.nii.gz PROMPTS="liver,spleen" OUT=found` (`make help` has the other options).
# - In a batch: `papermill notebooks/09_your_scan.ipynb mine.ipynb -p SCAN ct.nii.gz -p PROFILE full`, with the full path of the scan.
# - With other weights: `RUNS = ("path/to/a/run",)`; one panel or several, up to you.
#
# **What to take from it.** The viewer shows a single scan; the tables of [03](03_temporal_adapter.ipynb) and
# [05](05_zero_shot.ipynb) say how often what you see here is so.
