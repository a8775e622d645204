"""Finds models and optimizers, and begins and ends trackers: code that runs rarely, on the script's thread."""
