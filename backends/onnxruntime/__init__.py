"""ONNX Runtime on a CPU: a plan as one ONNX graph, driven by a runner that needs no deep-learning framework."""
