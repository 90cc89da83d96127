"""detlab: a lab for training, comparing and using object detectors on your own data."""

__version__ = "0.1.0"
