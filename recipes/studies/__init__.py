"""Studies of the theory on handwritten digits: `python -m recipes.studies` lists them."""
