"""`python -m evomerge.methods` prints the table of methods, configs/METHODS.md."""

from evomerge.methods.table import methods_table

print(methods_table(), end="")
