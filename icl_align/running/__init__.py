"""One run from start to end, in whatever world.

`cli`, `compose`, `errors` and `help` make a configuration of a command line; `job`, `run`, `loop`
and `crew` train it, with `training`, `packing`, `slices`, `keys` and `mesh` as pure functions below;
`evaluation`, `measuring` and `kept` measure it; `run_folder`, `checkpoints`, `tracking`, `terminal`
and `files` are what it leaves; `sweeps`, `shares`, `devices`, `signals` and `profiling` are where it
runs. A world is seen through `icl_align.world` only.
"""
