"""Turns the measurement of one step into a sample, with numpy, on the writer's thread."""
