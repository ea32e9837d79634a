"""Grids of runs, and the tables and plots that they come to."""
