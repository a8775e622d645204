"""Code that runs on the writer's thread, with numpy: it turns the measurement of one step into a sample."""
