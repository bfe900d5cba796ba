"""Makes the data of the guard's linear model and trains it."""
