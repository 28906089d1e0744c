"""Verbs that look at a running process: `top`, `status`, `doctor`."""
