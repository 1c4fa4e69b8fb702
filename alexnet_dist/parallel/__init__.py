"""Processes, devices and precision: the only place that talks to Accelerate."""
