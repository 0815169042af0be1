"""Sorting numbers up and down, and words by the alphabet."""

import random

from distill.tasks.build import comma, instruction, worked
from distill.tasks.lexicon import WORDS
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(2, 100), 3 + int(rng.random() * 3))


def _draw_ascending(rng: random.Random) -> Draw:
    numbers = _numbers(rng)
    return worked({"numbers": comma(numbers)}, result=comma(sorted(numbers)), key=comma(numbers))


def _draw_descending(rng: random.Random) -> Draw:
    numbers = _numbers(rng)
    return worked({"numbers": comma(numbers)}, result=comma(sorted(numbers, reverse=True)), key=comma(numbers))


def _draw_words(rng: random.Random) -> Draw:
    """Words with different first letters, so that the first letters decide."""
    words: dict[str, str] = {}
    wanted = 3 + int(rng.random() * 3)
    while len(words) < wanted:
        word = pick(rng, WORDS)
        words.setdefault(word[0], word)
    ordered = sorted(words)
    return worked(
        {"items": comma(list(words.values()))},
        steps=[comma(list(words)) + " -> " + comma(ordered)],
        result=comma([words[letter] for letter in ordered]),
        key=comma(list(words.values())),
    )


ASCENDING = instruction(
    "sort_ascending",
    _draw_ascending,
    phrasings=(
        "[Sort|Order|Arrange|Please sort] the numbers {numbers} [in ascending order|from smallest to "
        "largest|from low to "
        "high|in increasing order].",
        "[Put|Write|List|Place] {numbers} in [ascending|increasing] order.",
        "What is {numbers} [sorted from smallest to largest|in ascending order|in increasing order|sorted upwards]?",
        "[Start|Begin] with the smallest[ number|] and [sort|order|list|arrange] {numbers}.",
        "[Given|Take] the numbers {numbers}[,| and] [sort|order|arrange] them [in ascending order|from low to "
        "high|upwards].",
        "The numbers are {numbers}. [Sort them|List them|Order them] [from smallest to biggest|in ascending "
        "order|smallest "
        "first].",
        "{numbers}: [smallest first, please|sort ascending|from low to high, please|in increasing order].",
        "I have [a list of numbers|some numbers]: {numbers}. [What is the list|How do they stand] in ascending order?",
        "[Could|Can|Would] you [please |][sort|order|arrange] {numbers} [in ascending order|from small to "
        "big|upwards]?",
        "[Rank|Line up|Order] {numbers} from [the smallest to the largest|the lowest to the highest|small to large].",
        "How do the numbers {numbers} [look|stand] [from smallest to largest|sorted upwards|in increasing order]?",
        "[Sort|Arrange|Order] {numbers} [so that|such that] [they go up|each number is larger than the one before|they "
        "increase].",
        "If {numbers} are [sorted|ordered|arranged] with the [smallest|lowest] first, what is the [order|list]?",
        "[Show|Give|Return|Tell me] the [list|numbers] {numbers} [in ascending order|sorted upwards|with the smallest "
        "first].",
        "Ascending order of {numbers}?",
        "I want {numbers} [in increasing order|sorted from low to high|from the lowest to the highest].",
        "[Make|Build] an ascending list [of|from|out of] {numbers}.",
        "Small numbers first: [sort|order|arrange] {numbers}.",
        "[Children|Players] with the numbers {numbers} line up, smallest first. What is the order?",
        "[Climb|Go] up from the smallest to the largest [of|in] {numbers} and [list|write] all the numbers.",
        "Which order do {numbers} have when they [increase|go up|are sorted upwards]?",
    ),
    held_out=(
        "Please list the numbers {numbers} from the lowest to the highest.",
        "What is the order of {numbers} with the smallest number first?",
        "Take {numbers} and arrange them in increasing order.",
        "Can you put {numbers} in order from small to large?",
        "Sort so that they go up: {numbers}.",
    ),
    frames=(
        "Sorted from smallest to largest, {numbers} [becomes|is] {result}.",
        "In ascending order the numbers {numbers} are {result}.",
        "Numbers: {numbers}\nAscending: {result}",
    ),
)

DESCENDING = instruction(
    "sort_descending",
    _draw_descending,
    phrasings=(
        "[Sort|Order|Arrange|Please sort] the numbers {numbers} [in descending order|from largest to "
        "smallest|from high to "
        "low|in decreasing order].",
        "[Put|Write|List|Place] {numbers} in [descending|decreasing] order.",
        "What is {numbers} [sorted from largest to smallest|in descending order|in decreasing order|sorted downwards]?",
        "[Start|Begin] with the largest[ number|] and [sort|order|list|arrange] {numbers}.",
        "[Given|Take] the numbers {numbers}[,| and] [sort|order|arrange] them [in descending order|from high to "
        "low|downwards].",
        "The numbers are {numbers}. [Sort them|List them|Order them] [from biggest to smallest|in descending "
        "order|largest "
        "first].",
        "{numbers}: [largest first, please|sort descending|from high to low, please|in decreasing order].",
        "I have [a list of numbers|some numbers]: {numbers}. [What is the list|How do they stand] in descending order?",
        "[Could|Can|Would] you [please |][sort|order|arrange] {numbers} [in descending order|from big to "
        "small|downwards]?",
        "[Rank|Line up|Order] {numbers} from [the largest to the smallest|the highest to the lowest|large to small].",
        "How do the numbers {numbers} [look|stand] [from largest to smallest|sorted downwards|in decreasing order]?",
        "[Sort|Arrange|Order] {numbers} [so that|such that] [they go down|each number is smaller than the one "
        "before|they "
        "decrease].",
        "If {numbers} are [sorted|ordered|arranged] with the [largest|highest] first, what is the [order|list]?",
        "[Show|Give|Return|Tell me] the [list|numbers] {numbers} [in descending order|sorted downwards|with "
        "the largest "
        "first].",
        "Descending order of {numbers}?",
        "I want {numbers} [in decreasing order|sorted from high to low|from the highest to the lowest].",
        "[Make|Build] a descending list [of|from|out of] {numbers}.",
        "Big numbers first: [sort|order|arrange] {numbers}.",
        "[Children|Players] with the numbers {numbers} line up, largest first. What is the order?",
        "[Climb|Go] down from the largest to the smallest [of|in] {numbers} and [list|write] all the numbers.",
        "Which order do {numbers} have when they [decrease|go down|are sorted downwards]?",
    ),
    held_out=(
        "Please list the numbers {numbers} from the highest to the lowest.",
        "What is the order of {numbers} with the largest number first?",
        "Take {numbers} and arrange them in decreasing order.",
        "Can you put {numbers} in order from large to small?",
        "Sort so that they go down: {numbers}.",
    ),
    frames=(
        "Sorted from largest to smallest, {numbers} [becomes|is] {result}.",
        "In descending order the numbers {numbers} are {result}.",
        "Numbers: {numbers}\nDescending: {result}",
    ),
)

SORT_WORDS = instruction(
    "sort_words",
    _draw_words,
    phrasings=(
        '[Sort|Order|Arrange|Please sort] the words "{items}" [alphabetically|by the alphabet|in alphabetical '
        "order|from A "
        "to Z].",
        '[Put|Write|List|Place] "{items}" in alphabetical order.',
        'What is "{items}" [in alphabetical order|sorted alphabetically|sorted from A to Z|sorted by the alphabet]?',
        '[Which|What] order do the words "{items}" have [in a dictionary|in the alphabet|alphabetically]?',
        '[Given|Take] the words "{items}"[,| and] [sort|order|arrange] them [alphabetically|from A to Z|by the '
        "alphabet].",
        'The words are "{items}". [Sort them alphabetically.|List them in alphabetical order.|Order them from A to Z.]',
        '"{items}": [alphabetical order, please|sort from A to Z|sort by the alphabet].',
        'I have [a list of|some] words: "{items}". [What is the list|How do they stand] in alphabetical order?',
        '[Could|Can|Would] you [please |][sort|order|arrange] the words "{items}" [alphabetically|from A to Z]?',
        '[Rank|Line up|Order] the words "{items}" [by their first letters|by the alphabet|as in a dictionary].',
        'How do the words "{items}" [look|stand] [in alphabetical order|when sorted from A to Z|in a dictionary]?',
        '[Sort|Arrange|Order] the list "{items}" [as in a dictionary|as in a phone book|by the letters of the '
        "alphabet].",
        'If "{items}" are [sorted|ordered|arranged] [alphabetically|by the alphabet], what is the [order|list]?',
        '[Show|Give|Return|Tell me] the [list|words] "{items}" [in alphabetical order|sorted '
        "alphabetically|from A to Z].",
        'Alphabetical order of "{items}"?',
        'I want the words "{items}" [in alphabetical order|sorted from A to Z|ordered by the alphabet].',
        '[Make|Build] an alphabetical list [of|from|out of] "{items}".',
        'A dictionary [has|holds] the words "{items}". In which order [are they|do they stand]?',
        'A comes before B: [sort|order|arrange] "{items}" [that way|like that].',
        '[Students|Books] [are named|are called] "{items}". [List|Name|Sort] them [alphabetically|in '
        "alphabetical order].",
        'Use the alphabet to [sort|order|arrange] the words "{items}".',
    ),
    held_out=(
        'Please list the words "{items}" by the alphabet.',
        'What is the alphabetical order of the words "{items}"?',
        'Take "{items}" and arrange the words as in a dictionary.',
        'Can you put the words "{items}" in order from A to Z?',
        'I have the words "{items}". Sort them by their letters, alphabetically.',
    ),
    frames=(
        "In alphabetical order, {items} [becomes|is] {result}. The first letters are sorted: {steps}",
        "A dictionary lists the words {items} as {result}.\n{steps}",
        "Words: {items}\n{steps}\nAlphabetical: {result}",
    ),
)

FAMILIES = (ASCENDING, DESCENDING, SORT_WORDS)
