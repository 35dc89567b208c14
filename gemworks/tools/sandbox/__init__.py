"""Running a tool's code where it can do no harm: a child process without network, environment, files or rights.

What it is not: a virtual machine. The kernel is shared, and a hole in it is a hole in the sandbox; the seccomp filter
makes the part of the kernel that a tool can reach small. Side channels (time, caches) are not handled.
"""
