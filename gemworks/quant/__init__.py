"""Shrinking weights: formats, plans, and two ways of rounding. Functions from matrices to quantized matrices."""
