"""The miniature teacher before it is trained: its tokenizer and first weights."""
