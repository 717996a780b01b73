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
# **Reproduces.** Tables 1 to 3 and Figures 1 and 3 of *T-Gated Adapter*. Everything here is read from `scores.csv` and small
# stored extracts, so that this notebook needs no training: seconds in every profile whose scores exist.

# %%
import os

from lib import figures, report
from lib.paths import results_root
from lib.profiles import HEADLINE, settings_of
from lib.runs import evaluate

# %% tags=["parameters"]
PROFILE = os.environ.get("PROFILE", "demo")

# %% [markdown]
# The demo's scores come with the repository; where there are none yet, the headline runs are trained and scored now.

# %%
settings = settings_of("adapter", PROFILE)
if not (results_root(PROFILE) / "scores.csv").exists():
    for run in HEADLINE:
        evaluate(run, PROFILE)
    figures.extract(PROFILE)
scores = report.read_scores(PROFILE)
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
report.show(report.tgated_table3(scores, settings.test_on[0]))

# %% [markdown]
# ## Figure 1. Where the pancreas is seen, slice by slice
#
# Each strip is one scan from the feet to the head. Marked slices are false: the organ is predicted and not there.

# %%
figures.tgated_fig1(PROFILE)
# %% [markdown]
# ## Figure 3. The best slice of each organ
#
# Two organs a row: the picture, the truth, the baseline and the adapter, with the Dice in that slice. It is the adapter at its
# best, not at its average: Table 3 has that.

# %%
figures.tgated_fig3(PROFILE)
# %% [markdown]
# ## Files
#
# The same tables as CSV, Markdown and LaTeX, and the figures as PNG and PDF:

# %%
written = [*report.all_tables(PROFILE), *figures.all_figures(PROFILE)]
print("\n".join(sorted(path.name for path in written)))
