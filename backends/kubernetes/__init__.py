"""Kubernetes: vLLM's artefact served by KServe or by Dynamo."""
