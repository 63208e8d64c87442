"""Scripts that make and check data sets."""
