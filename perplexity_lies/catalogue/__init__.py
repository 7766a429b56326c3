"""What is asked: suites, their tasks and items, and the mirror that datasets are read from."""
