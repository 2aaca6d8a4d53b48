"""The configurations that are measured: a closed list of names."""

# Name -> overrides, as `python -m icl_align.train` takes them.
CASES = {
    "default": [],
    "published": ["+experiment=paper"],
    "published_triplet": ["+experiment=paper", "model.tokens=triplet"],
    "smoke": ["+scale=smoke"],
}
# Case -> another one, with which PyTorch takes part too: what a user would train instead.
INSTEAD = {"published_triplet": "published"}
