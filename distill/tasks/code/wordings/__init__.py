"""The descriptions of the code families, one file for each file of programs."""
