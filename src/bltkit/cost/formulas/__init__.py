"""Closed forms: operations per byte, parameters, and the paper's estimate of memory traffic."""
