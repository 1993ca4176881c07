"""What is computed with which columns of a dataset and in which field, and what is said where it lacks them."""
