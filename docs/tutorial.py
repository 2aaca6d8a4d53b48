# %% [markdown]
# # Tutorial
#
# From a trained run to a figure of your own, and to an ablation of your own.
#
# This page is the script `docs/tutorial.py`. Run it as it is, or make a notebook of it:
#
# ```bash
# .venv/bin/pip install -c constraints.txt -e '.[docs]' jupyterlab
# .venv/bin/jupytext --to ipynb docs/tutorial.py
# .venv/bin/jupyter lab docs/tutorial.ipynb
# ```

# %% [markdown]
# ## A trained run
#
# The default trains for less than a minute on two cores. `+scale=smoke` instead takes some seconds; its 20 steps are
# too few to learn anything. A folder that holds a finished run is only read.

# %%
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import icl_align

SCALE = "+scale=small"
FOLDER = Path("runs/tutorial")

run = icl_align.train(SCALE, "wandb.mode=disabled", folder=FOLDER / "default")
print(run.folder, run.step, run.seeds)

# %% [markdown]
# `icl_align.load(folder)` gives the same run at any later time. It has the options, the curves and the networks:

# %%
print(run.config.model.num_layers, "layers,", run.config.model.num_heads, "heads")
print("learners:", ", ".join(run.curves["learners"]))
print("last loss:", next(r["train/loss"] for r in reversed(run.metrics) if "train/loss" in r))

# %% [markdown]
# ## A context of your own
#
# A context is a query [b, d] with responses [b, n, d] and rewards [b, n]. `sample` draws some; arrays by hand do as
# well. A learner answers after every number of attempts: [b, n + 1, d].

# %%
contexts = icl_align.sample(run.config, num_contexts=500)
answers = run.predict(contexts)
descent = icl_align.learners(run.config)["gradient_descent"](contexts)
print(answers.shape, descent.shape)


def cosine(a, b):
    """Along the last axis."""
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


# %% [markdown]
# What if every reward is turned around? A learner that reads the rewards should now point away from the target.

# %%
turned = run.predict((contexts.query, contexts.responses, 1 - contexts.rewards))
target = contexts.target[:, None]
for name, answer in {"as drawn": answers, "turned around": turned}.items():
    print(f"{name:14} cosine with the target {cosine(answer[:, 15:16], target).mean():+.3f}")

# %% [markdown]
# The default gives +0.707 and -0.657: it follows the rewards it is shown, wherever they lead.
#
# ## A figure of your own
#
# `run.figure()` is the figure of `curves.png`. Everything in it is in `run.curves`, with 95% intervals. Here is the agreement
# with gradient descent, at each level of reward noise.

# %%
figure = Figure(figsize=(6, 4), layout="constrained")
axes = figure.subplots()
for noise, quantities in run.curves["learners"]["transformer"].items():
    curve = quantities["agreement"]
    [line] = axes.plot(run.curves["attempts"], curve["mean"], label=f"p = {noise}")
    axes.fill_between(
        run.curves["attempts"], curve["low"], curve["high"], color=line.get_color(), alpha=0.2
    )
axes.set(xlabel="attempts", ylabel="agreement with gradient descent", xlim=(1, None))
axes.legend(title="reward noise")
figure.savefig(FOLDER / "agreement.png", dpi=150)

# %% [markdown]
# ![Agreement with gradient descent at each level of reward noise](tutorial_agreement.png)
#
# *The default run. With clean rewards the answers agree; under noise they part.*

# %% [markdown]
# ## An ablation of your own: another network
#
# An ablation is a set of options. Any options make one; here the network has narrow heads and a ReLU.

# %%
relu = icl_align.train(
    SCALE,
    "model.activation=relu",
    "model.num_heads=8",
    "wandb.mode=disabled",
    folder=FOLDER / "relu",
)
header, rows = icl_align.compare(FOLDER / "default", FOLDER / "relu")
for row in [header, *rows]:
    print("  ".join(f"{cell:>22}" for cell in row))

# %% [markdown]
# In a checkout a file gives it a name, for `+ablation=NAME` and for sweeps. This is all of `conf/ablation/narrow_heads.yaml`;
# the first line says that its options stand where those of the run do:
#
# ```yaml
# # @package _global_
# # Eight narrow heads and a ReLU.
# model:
#   num_heads: 8
#   activation: relu
# ```

# %% [markdown]
# ## An ablation of your own: a part of a trained network
#
# `run.changed(function)` gives a run whose networks have other parameters. Here one head is silenced in every block: its
# rows of the output map are set to zero. `icl_align.evaluate` then measures what is left.

# %%
num_heads = run.config.model.num_heads
width_of_head = run.config.model.width // num_heads


def without_head(head):
    """The change that silences head number `head` of every block."""
    rows = slice(head * width_of_head, (head + 1) * width_of_head)

    def change(params):
        for block in params["trunk"]["blocks"].values():
            out = block["attention"]["out"]
            out["kernel"] = out["kernel"].at[rows].set(0.0)
        return params

    return change


OPTIONS = ["evaluation.reward_noise=[0.0]", "evaluation.num_contexts=256"]
found = {"all heads": icl_align.evaluate(run, *OPTIONS)}
for head in range(num_heads):
    found[f"without head {head}"] = icl_align.evaluate(run.changed(without_head(head)), *OPTIONS)

place = run.curves["attempts"].index(15)
for name, curves in found.items():
    regret = curves["learners"]["transformer"]["0.0"]["regret"]
    numbers = (regret[key][place] for key in ("mean", "low", "high"))
    print(f"{name:16} regret {{:.3f}} [{{:.3f}}, {{:.3f}}]".format(*numbers))

# %% [markdown]
# The default has a regret of 0.027 with all heads, and of 0.31, 0.63, 0.31 and 1.93 without each of them: all are used.
#
# One network, so the intervals cover the choice of contexts only. For a claim train several: `num_seeds=5`.
#
# ## Where to go on
#
# - [What the numbers mean](numbers.md)
# - [Runs](runs.md) and [sweeps](sweeps.md) from the command line
# - [Every function](reference.md) used here
