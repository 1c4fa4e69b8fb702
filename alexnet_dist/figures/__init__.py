"""Figures: arrays and rows in, PNG files out. Nothing here knows of networks, data or runs."""
