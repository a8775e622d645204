"""Measures a sampled optimizer step on the device where the weights lie.

This code runs inside a training step, on the training's thread. It must be fast, must not wait for a GPU, and imports
nothing that works in numpy: what it measures leaves it as a `Measurement`, which `tracking.interpret` reads later on
another thread.
"""
