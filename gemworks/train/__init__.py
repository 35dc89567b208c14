"""The trainer: one loop for every method, on one device or many. docs/train.md says how to use it."""
