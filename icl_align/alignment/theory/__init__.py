"""The theory as code: transformers built by hand that take the gradient step, and what is needed.

`assembly` writes weights by the names of channels, `construction` builds the networks, `exactness`
measures them against `jax.grad`, `knock_outs` takes parts away, `trained` compares a trained run
with them. The command is `python -m icl_align.theory`.
"""
