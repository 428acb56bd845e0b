"""Machine code for a CPU, and how Python calls it."""
