"""One HTML file that says whether to believe a run, and shows what it predicts."""
