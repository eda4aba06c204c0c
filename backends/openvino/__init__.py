"""OpenVINO GenAI: a float checkpoint to convert, and the properties of its cache."""
