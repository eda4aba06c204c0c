"""onnxruntime-genai: the graphs of the onnxruntime backend under the names that its generator binds."""
