"""From a case on disk to a mask in its own grid; needs a model folder and no settings."""
