"""Measuring: peaks of this machine, ours and rivals on the same weights, and the models of random numbers they run.

Rivals' packages are imported in rivals_*.py only, and only when a rival is asked for.
"""
