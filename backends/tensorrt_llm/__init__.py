"""TensorRT-LLM: a ModelOpt checkpoint, its layers' formats, and the options of trtllm-serve."""
