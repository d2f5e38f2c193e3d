"""Whether the numbers of an attack on a model can mean what a table says: a verdict per line."""
