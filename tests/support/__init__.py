"""What several test files or processes share: makers of inputs, readers of machine code."""
