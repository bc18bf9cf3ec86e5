"""`beit doctor`: one pass over all images of a data set, and what is wrong with them."""
