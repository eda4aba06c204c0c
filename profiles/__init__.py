"""Measuring models and machines: where models come from, what their options cost, how fast a machine is."""
