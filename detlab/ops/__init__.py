"""Kernels in which detlab is faster than what it replaces; each beside the plain one that it must equal."""
