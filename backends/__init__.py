"""Runtimes: each emits a plan as files, and where it can run here also loads and executes them."""
