"""Where every speed, memory and accuracy claim of this project comes from: `make bench`, and `make gpu` on a GPU."""
