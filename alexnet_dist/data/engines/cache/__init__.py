"""The image cache: built once, read as rows of bytes."""
