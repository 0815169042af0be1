"""Recipes: one YAML file is one experiment. `load.load_recipe` reads, `schema.Recipe` is what it means."""
