"""The training loop, its driver, and the messages between them."""
