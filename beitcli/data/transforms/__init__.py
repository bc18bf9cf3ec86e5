"""From a decoded image to what a model sees: crops, flips, colours."""
