"""C++ kernels for CPUs (csrc/), as operations of a compiled step. Imported by ops/select.py only."""
