"""Comparison of runs, and the page that shows them. Reads runs that are over or still going on; measures nothing."""
