"""The claims of Liu et al. (2025, arXiv 2510.07290), and what they rest on."""
