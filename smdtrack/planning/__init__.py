"""Predictions that need no training: schedules, their stages, and advice on a recipe."""
