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

import pandas as pd
from IPython.display import display

from lib import figures, report
from lib.paths import results_root
from lib.profiles import HEADLINE, settings_of
from lib.report.claims import claims
from lib.runs import evaluate

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")

# %% [markdown]
# The demo's scores come with the repository; where there are none yet, the headline runs are trained and scored now.

# %%
settings = settings_of("adapter", PROFILE)
path = results_root(PROFILE) / "scores.csv"
scored = set(pd.read_csv(path)["run"]) if path.exists() else set()
if not scored >= set(HEADLINE):
    for run in HEADLINE:
        evaluate(run, PROFILE)
    figures.extract(PROFILE)
scores, dataset = report.read_scores(PROFILE), settings.test_on[0]
print(
    f"{report.data_note(PROFILE)}; {len(scores)} rows, {scores['run'].nunique()} runs, {scores['case'].nunique()} scans"
)

# %% [markdown]
# ## Table 1. Sampling weights
#
# Published and used are the same.

# %%
report.show(report.tgated_table1())

# %% [markdown]
# ## Table 2. Mean Dice
#
# Look for the difference and its interval; columns of data sets that this profile has not run stay empty.

# %%
report.show(report.tgated_table2(scores))

# %% [markdown]
# ## Table 3. Dice by organ

# %%
report.show(report.tgated_table3(scores, dataset))

# %% [markdown]
# ## Table 4. Prompts

# %%
report.show(report.tgated_table4(scores, dataset))

# %% [markdown]
# ## Table 5. From CT to MRI

# %%
report.show(report.tgated_table5(scores))

# %% [markdown]
# ## Figure 1. Where the pancreas is seen, slice by slice
#
# Each strip is one method on the same scan, from the feet to the head. Hatched slices are false: the organ is predicted and not
# there. One scan is no proof (it is the one with the baseline's median of false slices): the table of consistency counts all ten.

# %%
figures.tgated_fig1(PROFILE)

# %% [markdown]
# ## Figure 2. The architecture
#
# Drawn from the model that is built: names, shapes and counts are what runs.

# %%
figures.tgated_fig2(PROFILE)

# %% [markdown]
# ## Figure 3. The best slice of each organ
#
# Two organs a row: the picture, the truth, the baseline and the adapter, with the Dice in that slice. It is the adapter at its
# best, not at its average: Table 3 has that.

# %%
figures.tgated_fig3(PROFILE)

# %% [markdown]
# ## Figure 4. The right kidney on MRI

# %%
try:
    display(figures.tgated_fig4(PROFILE))
except figures.NotRun as error:  # a profile without MRI
    print(error)

# %% [markdown]
# ## Med-VLM, Tables 2 and 3

# %%
display(report.show(report.medvlm_table2(PROFILE)))
display(report.show(report.medvlm_table3(scores, PROFILE)))

# %% [markdown]
# ## Med-VLM, Figures 1 to 8
#
# Loss and Dice by epoch of Large, Small and the 2-D U-Net; then their masks on the median case.

# %%
for name, draw in figures.MEDVLM_FIGURES.items():
    try:
        display(draw(PROFILE))
    except figures.NotRun as error:  # the smoke profile runs them in notebook 07 alone
        print(f"{name}: {error}")

# %% [markdown]
# ## The claims, one by one
#
# Every quantitative statement of the T-Gated paper, ours beside it, and a verdict (Med-VLM has no ledger). On phantoms only a
# *direction* can be tested (who is ahead, with an interval clear of zero); a *size* waits for the full profile. The arithmetic is the
# paper's own, recomputed from its tables. The whole ledger is in `claims.md`; here the verdicts by kind, and every claim that does
# not hold.

# %%
ledger = claims(PROFILE)
pd.crosstab(ledger["kind"], ledger["verdict"])

# %%
pd.set_option("display.max_colwidth", None)
ledger.loc[
    ledger["verdict"].isin(["not reproduced", "does not agree"]),
    ["place", "claim", "published", "measured"],
].set_index("place")

# %% [markdown]
# ## Files
#
# The same tables as CSV, Markdown and LaTeX, and the figures as PNG and PDF:

# %%
written = [*report.all_tables(PROFILE), *figures.all_figures(PROFILE)]
print("\n".join(sorted(path.name for path in written)))
