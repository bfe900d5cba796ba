"""How each guard model is asked, and how its answer is read."""
