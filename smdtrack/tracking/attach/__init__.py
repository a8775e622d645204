"""Code that runs rarely, on the script's thread: finding models and optimizers, beginning and ending a tracker."""
