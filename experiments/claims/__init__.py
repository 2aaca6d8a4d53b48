"""The claims of each paper: one module each, with `claim(scale) -> Claim`."""
