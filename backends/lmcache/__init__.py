"""LMCache beside vLLM: how much of the KV cache of earlier prompts the host keeps."""
