"""detlab against the plain torchvision loop, on the same work, in turns."""
