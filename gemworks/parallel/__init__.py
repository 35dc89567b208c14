"""Training on many devices: a mesh, which device holds which part of what, and processes on several machines."""
