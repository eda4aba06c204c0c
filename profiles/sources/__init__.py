"""Opening a model: an installed package, a GGUF file, a Hugging Face directory or a bare config.json."""
