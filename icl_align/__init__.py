"""icl_align: tests the theory of self-correction as in-context alignment with tiny transformers."""

__version__ = "0.1.0"
