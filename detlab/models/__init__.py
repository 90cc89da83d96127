"""Detectors, their backbones, and the weights they start from."""
