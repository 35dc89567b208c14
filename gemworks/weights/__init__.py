"""Published files <-> models: safetensors and GGUF, read strictly and written whole or not at all."""
