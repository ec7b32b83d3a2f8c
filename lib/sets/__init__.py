"""How the files of the data sets are fetched, checked and read."""
