"""The alignment world: responses with rewards, and learners that answer after every attempt.

Wang et al. (NeurIPS 2024, arXiv 2405.18634). `contexts` draws, `model` reads, `losses` is
minimised, `learners`, `optimum` and `metrics` are what is measured, `figures` draws it; `world`
puts them together as the protocol of `icl_align.world` asks, `options` declares the options.
`theory/` builds the networks of the theory.
"""
