"""Which images, what happens to them at each step, and how that is carried out."""
