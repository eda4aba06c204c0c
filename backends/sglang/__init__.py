"""SGLang: vLLM's checkpoint and a YAML of server arguments."""
