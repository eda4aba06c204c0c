"""Hugging Face transformers as the reference runtime: it carries every decision of a plan, physically."""
