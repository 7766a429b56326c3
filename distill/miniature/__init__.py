"""The miniature teacher before training: its tokenizer and first weights."""
