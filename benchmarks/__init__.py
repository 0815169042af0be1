"""Measurements of the project, each a module run by `python -m benchmarks.<name>`."""
