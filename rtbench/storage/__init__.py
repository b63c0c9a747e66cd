"""Result folders, which are the truth, and an index over them."""
