"""How the rows of each data set are read."""
