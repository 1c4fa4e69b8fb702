"""NVIDIA DALI as an engine."""
