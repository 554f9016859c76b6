"""The half that is trained: a head over frozen features, its losses, its training, and prediction with it."""
