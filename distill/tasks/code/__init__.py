"""Families of "write a Python function": operations on numbers, words, texts and dicts, composed."""

from distill.tasks.code.branches import BRANCH_FAMILIES
from distill.tasks.code.build import CodeFamily
from distill.tasks.code.dict_making import DICT_MAKING_FAMILIES
from distill.tasks.code.dicts import DICT_FAMILIES
from distill.tasks.code.loops import LOOP_FAMILIES
from distill.tasks.code.numbers import NUMBER_FAMILIES
from distill.tasks.code.order import ORDER_FAMILIES
from distill.tasks.code.pairs import PAIR_FAMILIES
from distill.tasks.code.scalars import SCALAR_FAMILIES
from distill.tasks.code.search import SEARCH_FAMILIES
from distill.tasks.code.texts import TEXT_FAMILIES
from distill.tasks.code.words import WORD_FAMILIES

CODE_FAMILIES: tuple[CodeFamily, ...] = (
    *NUMBER_FAMILIES,
    *SEARCH_FAMILIES,
    *LOOP_FAMILIES,
    *ORDER_FAMILIES,
    *PAIR_FAMILIES,
    *SCALAR_FAMILIES,
    *BRANCH_FAMILIES,
    *TEXT_FAMILIES,
    *WORD_FAMILIES,
    *DICT_FAMILIES,
    *DICT_MAKING_FAMILIES,
)
