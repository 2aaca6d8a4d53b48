"""One run from start to end, in whatever world.

`cli`, `compose`, `errors` and `help` make a configuration of a command line; `job`, `run`, `loop`
and `crew` train it, with pure functions in `training`, `packing`, `slices`, `keys` and `mesh`;
`evaluation`, `measuring` and `kept` measure it, `reevaluation` once more; `run_folder`,
`checkpoints`, `tracking`, `terminal` and `files` are what it leaves, `workspace` what W&B shows of
it; `sweeps`, `shares`, `devices`, `signals` and `profiling` are where it runs. A world is seen
through `icl_align.world` only.
"""
