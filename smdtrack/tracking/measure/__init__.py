"""Code that runs inside a training step, on the device of the weights: it must be fast and must not wait."""
