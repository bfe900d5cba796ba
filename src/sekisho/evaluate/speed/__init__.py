"""How quick a model is: load, cells, plans, cold starts."""
