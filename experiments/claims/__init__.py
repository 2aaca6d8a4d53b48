"""The claims of the alignment world: one module each, with `claim(scale) -> Claim`."""
