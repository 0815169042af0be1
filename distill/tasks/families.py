"""Every instruction and code family by name."""

from distill.tasks.code import CODE_FAMILIES
from distill.tasks.instructions import arithmetic, dates_units, lists, logic, reading, sorting, word_problems, words
from distill.tasks.types import Family

INSTRUCTION_FAMILIES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *word_problems.FAMILIES,
    *words.FAMILIES,
    *lists.FAMILIES,
    *sorting.FAMILIES,
    *dates_units.FAMILIES,
    *logic.FAMILIES,
    *reading.FAMILIES,
)
SOLVED_FAMILIES: tuple[Family, ...] = (*INSTRUCTION_FAMILIES, *CODE_FAMILIES)  # all but the judge's
