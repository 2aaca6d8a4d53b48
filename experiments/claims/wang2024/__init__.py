"""The claims of Wang et al. (NeurIPS 2024, arXiv 2405.18634), and what they rest on."""
