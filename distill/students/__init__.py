"""Student architectures: a Qwen3-style stack; each layer has softmax attention or a mixer."""
