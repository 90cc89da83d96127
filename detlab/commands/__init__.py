"""The commands of `detlab`, one file each, imported only when called."""
