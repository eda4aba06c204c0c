"""vLLM: a compressed-tensors checkpoint with the arguments it is served with, checked by vLLM itself."""
