"""The life of a run: its folder, its start, its end."""
