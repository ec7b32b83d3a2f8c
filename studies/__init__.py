"""The questions, one file each, over runs and their records. ``python -m studies --list`` lists them."""
