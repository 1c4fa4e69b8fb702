"""Distributed training for AlexNet: exact, resumable, and measured."""

__version__ = "0.1.0"
