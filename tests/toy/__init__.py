"""Two small steps, real ones by their commands, to see what an engine does with them."""
