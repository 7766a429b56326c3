"""What is asked: suites, their items, and where datasets lie."""
