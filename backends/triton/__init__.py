"""Kernels for GPUs: compiled ahead of time, searched, written beside a plan, and checked without a GPU."""
