"""Jailbreaks of networks trained on `task=request`, and what defends against them."""
