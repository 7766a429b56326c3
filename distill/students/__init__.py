"""Student architectures: a Qwen3-style stack whose layers keep softmax attention or have a mixer in its place."""
