"""A learner's own answers as its next attempts, rewarded by a critic."""
