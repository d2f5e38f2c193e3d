"""Training: recipes as values, epochs that can be stopped and resumed, weights with their facts."""
