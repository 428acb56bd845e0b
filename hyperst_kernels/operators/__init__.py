"""What the dispatcher chooses a kernel for: one operator for each function, in a file of the same name."""
