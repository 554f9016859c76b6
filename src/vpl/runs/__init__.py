"""One data set, one folder: streamed through the stages, killed and continued at any moment."""
