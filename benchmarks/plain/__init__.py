"""Programs that a user could have written instead: PyTorch, Accelerate, DALI, and nothing of alexnet_dist."""
