"""docker compose: vLLM's artefact served by one container."""
