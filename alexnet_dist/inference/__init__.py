"""A trained network: its folder, its weights, what is made of it."""
