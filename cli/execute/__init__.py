"""The verb `exec`."""
