"""Where every speed and memory claim of this project comes from."""
