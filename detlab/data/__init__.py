"""Data sets, one file a format, and what brings their samples to the model."""
