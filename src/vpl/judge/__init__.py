"""What is it worth? Settings compared with and without ground truth; signs of failure of a run."""
