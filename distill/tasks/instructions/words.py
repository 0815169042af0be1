"""Letters of words: reversing, counting, capitals, replacing, joining, acronyms. Words are spelled out on the way."""

import random

from distill.tasks.build import comma, instruction, spelled, worked
from distill.tasks.lexicon import SPELLABLE, WORDS
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

SEPARATORS = ("-", "_", "+", "/", "*", ":", ".", "#", "&", "=", ";", "|", "@", "~")
LETTERS = "abcdefghiklmnoprstuvwy"


def _draw_reverse(rng: random.Random) -> Draw:
    word = pick(rng, SPELLABLE)
    backwards = word[::-1]
    return worked({"word": word}, steps=[f"{spelled(word)} -> {spelled(backwards)}"], result=backwards, key=word)


def count_steps(word: str, letter: str) -> str:
    """The letters in order, each hit with its running count: `b, a 1, n, a 2`."""
    seen, parts = 0, []
    for char in word:
        seen += char == letter
        parts.append(f"{char} {seen}" if char == letter else char)
    return comma(parts)


def _draw_count_letter(rng: random.Random) -> Draw:
    word = pick(rng, SPELLABLE)
    letter = pick(rng, word) if rng.random() < 0.85 else pick(rng, LETTERS)
    return worked(
        {"word": word, "letter": letter},
        steps=[count_steps(word, letter)],
        result=str(word.count(letter)),
        key=f"{letter} in {word}",
    )


def _draw_uppercase(rng: random.Random) -> Draw:
    words = [pick(rng, WORDS) for _ in range(2)]
    return worked(
        {"text": " ".join(words)},
        steps=[f"{spelled(word)} -> {spelled(word.upper())}" for word in words],
        result=" ".join(words).upper(),
        key=" ".join(words),
    )


def _draw_replace(rng: random.Random) -> Draw:
    word = pick(rng, SPELLABLE)
    old = pick(rng, word)
    new = pick(rng, LETTERS)
    while new == old:
        new = pick(rng, LETTERS)
    changed = word.replace(old, new)
    return worked(
        {"word": word, "old": old, "new": new},
        steps=[f"{spelled(word)} -> {spelled(changed)}"],
        result=changed,
        key=f"{word} {old}>{new}",
    )


def _draw_join(rng: random.Random) -> Draw:
    words = rng.sample(WORDS, 3 + int(rng.random() * 3))
    sep = pick(rng, SEPARATORS)
    return worked({"words": comma(words), "sep": sep}, result=sep.join(words), key=f"{comma(words)} {sep}")


def _draw_acronym(rng: random.Random) -> Draw:
    words = rng.sample(WORDS, 3 + int(rng.random() * 3))
    letters = [word[0].upper() for word in words]
    return worked(
        {"words": " ".join(words)},
        steps=[comma([f"{word} {letter}" for word, letter in zip(words, letters, strict=True)])],
        result="".join(letters),
        key=" ".join(words),
    )


REVERSE = instruction(
    "reverse_word",
    _draw_reverse,
    phrasings=(
        '[Reverse|Please reverse|Turn around|Flip] the [word|letters of|letters of the word] "{word}".',
        '[Write|Spell|Type|Say] [the word |]"{word}" backwards.',
        'What is "{word}" [spelled backwards|written backwards|backwards|reversed|in reverse]?',
        'What [word|do you get|string] [comes out|results|do you get] when "{word}" is [reversed|read backwards]?',
        '[Given|Take] the word "{word}"[,| and] [write|give|return|spell] it [backwards|in reverse].',
        'How do you [spell|write] "{word}" [backwards|in reverse|from the end to the start]?',
        'The word is "{word}". [Reverse it.|Write it backwards.|What is it backwards?|Turn it around.]',
        '"{word}": [reverse it|backwards, please|write this word backwards|spell it in reverse].',
        'I have the word "{word}". What [is it|does it look like] [backwards|reversed|in reverse]?',
        '[Could|Can|Would] you [please |]reverse the word "{word}"[ for me|]?',
        '[Put|Write|Give] the letters of "{word}" in [reverse|backward|the opposite] order.',
        '[Start|Begin] with the last letter of "{word}" and [write|spell|go] to the first.',
        'Read "{word}" from [right to left|the end to the start|the last letter to the first]. What [do you '
        "get|does it say]?",
        'If you [read|spell|write] "{word}" from [the end|right to left|the last letter], what do you get?',
        '[Show|Tell] me "{word}" [backwards|reversed|in reverse|with its letters in reverse order].',
        'I want to see the word "{word}" [reversed|backwards|in reverse].',
        'Reversed [form|spelling] of "{word}"?',
        'In a mirror the word "{word}" is read from right to left. [Write it that way.|How is it spelled then?]',
        '[Find|Give|Return|Produce] the [reverse|reversed form|backward spelling] of "{word}".',
        'Make the last letter of "{word}" the first, and so on [to the end|for all letters]. [What is the result?|]',
        'Spell the word "{word}" [letter by letter |]from back to front.',
        'How does "{word}" [look|read] [backwards|in reverse|when reversed|from back to front]?',
    ),
    held_out=(
        'Please write the letters of "{word}" from the last to the first.',
        'What does the word "{word}" look like in reverse?',
        'Take "{word}" and turn it around, letter by letter.',
        'Can you spell "{word}" from right to left?',
        'I have "{word}". Give me the reversed word.',
    ),
    frames=(
        "The word {word} is spelled and then read backwards:\n{steps}\n[Backwards it reads|This gives] {result}.",
        "{word} backwards is {result}: {steps}",
        "[In a mirror|From right to left], the letters of {word} change their order.\n{steps}\nThe result is {result}.",
    ),
)

COUNT_LETTER = instruction(
    "count_letter",
    _draw_count_letter,
    phrasings=(
        'How many times does [the letter |]"{letter}" [appear|occur|stand|show up] in [the word |]"{word}"?',
        '[Count|Please count|Find|Give] [how many times|how often] [the letter |]"{letter}" [appears|occurs] '
        'in "{word}".',
        'How many "{letter}" [are there|are|do you find|do you see] in [the word |]"{word}"?',
        '[Count|Add up] the [letter|letters] "{letter}" in [the word |]"{word}".',
        'In the word "{word}", how [often|many times] [do you see|does one find|do we have] [the letter |]"{letter}"?',
        'What is the [number|count] of [the letter |times of |]"{letter}" in [the word |]"{word}"?',
        '[Given|Take] the word "{word}"[,| and] count the letter "{letter}".',
        'The word is "{word}". How [many times|often] does [it contain|it have|it use] [the letter |]"{letter}"?',
        '"{word}": how many [times|letters] "{letter}"?',
        'I have the word "{word}". [How many of its letters are|Count the letters that are] "{letter}"?',
        '[Could|Can|Would] you [please |]count the letter "{letter}" in "{word}"[ for me|]?',
        '[Go through|Look at|Read] [the letters of |]"{word}" and count [each|every] "{letter}".',
        '[Tell me|Find out|Determine] [how often|how many times] "{letter}" [is in|is used in|is found in] "{word}".',
        'How often [does|do you see] [the letter |]"{letter}" [occur |appear |]in [the word |]"{word}"?',
        'Find out how many "{letter}" [the word |]"{word}" [has|contains].',
        'Letter: "{letter}". Word: "{word}". [How many|Count?|How often?]',
        '[Spell|Go through] "{word}" letter by letter. How [many times|often] do you find "{letter}"?',
        '[Find|Give|Return] the number of times that [the letter |]"{letter}" is in [the word |]"{word}".',
        'How many of the letters [in|of] "{word}" are [equal to |the same as |]"{letter}"?',
        'My word is "{word}" and my letter is "{letter}". How many times [is it in there|does it appear]?',
        'Does "{word}" contain [the letter |]"{letter}", and how many times?',
        'Count with me: how many "{letter}" does [the word |]"{word}" [have|contain]?',
        'If you spell "{word}", how [many times|often] do you [write|say|use] [the letter |]"{letter}"?',
    ),
    held_out=(
        'Please tell me the count of the letter "{letter}" in the word "{word}".',
        'Take "{word}". How many of its letters are "{letter}"?',
        'How often is the letter "{letter}" used in "{word}"?',
        'Look at the word "{word}" and find out how many times it has "{letter}".',
        'Can you count how often "{letter}" occurs in "{word}"?',
    ),
    frames=(
        "Counting the letter {letter} in {word}:\n{steps}\nThe letter {letter} [occurs|appears] {result} times.",
        "The word {word} has the letter {letter} {result} times: {steps}",
        "[Going through|We go through] {word}, looking for {letter}.\n{steps}\nThe count is {result}.",
    ),
)

UPPERCASE = instruction(
    "uppercase",
    _draw_uppercase,
    phrasings=(
        '[Write|Put|Type|Print] "{text}" in [capital letters|capitals|upper case|uppercase].',
        '[Convert|Change|Turn] "{text}" [to|into] [uppercase|upper case|capital letters|capitals].',
        'What is "{text}" in [uppercase|capital letters|upper case|capitals]?',
        '[Make|Turn] [all|all the|every one of the] letters of "{text}" [big|capital|uppercase|into capitals].',
        '[Capitalize|Uppercase] [every letter|each letter|all the letters] [of|in] "{text}".',
        'How do you write "{text}" [in capitals|with capital letters|with big letters|in uppercase]?',
        'The text is "{text}". [Write it in capitals.|Make it uppercase.|Change it to capital letters.]',
        '"{text}": [uppercase, please|in capitals|make every letter a capital|all capital letters, please].',
        'I have the [text|words] "{text}". What does it look like in [capitals|uppercase|capital letters]?',
        '[Could|Can|Would] you [please |]write "{text}" in [uppercase|capitals|capital letters][ for me|]?',
        '[Given|Take] the [text|words] "{text}"[,| and] [return|give|write] [it|them] in '
        "[uppercase|capitals|upper case].",
        '[Replace|Change] the small letters [of|in] "{text}" [by|into|to|with] capital letters.',
        '[Show|Give] me [the words |the text |]"{text}" with [every letter|all letters|all of its letters] '
        "[capitalized|in upper "
        "case|as capitals].",
        'Shout "{text}": write [it|everything] in capital letters.',
        'I want "{text}" in [all capitals|capital letters only|uppercase letters].',
        'Uppercase [form|version] of "{text}"?',
        '[Please use|Use] only capital letters to write "{text}".',
        'If "{text}" is [typed|written] with caps lock on, what [does it look like|do you see|comes out]?',
        '[Find|Give|Return|Produce] the uppercase [version|form] of "{text}".',
        'No small letters: [write|type] "{text}" [again |]in capitals.',
        'How does "{text}" look [in upper case|when typed in capitals|with all letters big|in capital '
        "letters|as capitals]?",
        'Rewrite "{text}" [so that|such that] [every letter is|all letters are] [a capital|capitals|uppercase|big].',
    ),
    held_out=(
        'Please change every letter of "{text}" to a capital.',
        'Take "{text}" and write all of its letters big.',
        'What does "{text}" look like when written in upper case?',
        'Give me the words "{text}" in capital letters.',
        'Can you turn "{text}" into uppercase?',
    ),
    frames=(
        "In capital letters, {text} [becomes|is written] {result}.\n{steps}",
        "Each small letter has a capital.\n{steps}\nSo {text} becomes {result}.",
        "{steps}\n{text} in capitals is {result}",
    ),
)

REPLACE = instruction(
    "replace_letter",
    _draw_replace,
    phrasings=(
        '[Replace|Please replace] [every|each|the letter] "{old}" in "{word}" [with|by] "{new}".',
        '[Change|Turn] [every|each|the letter] "{old}" [of|in] [the word |]"{word}" [to|into] "{new}".',
        'What [do you get|is the result|word comes out] [if|when] "{old}" in "{word}" [is replaced by|becomes] '
        '"{new}"?',
        'In [the word |]"{word}", [replace|swap|exchange] [the letter |]"{old}" [with|by|for] "{new}".',
        '[Write|Spell] "{word}" with "{new}" [instead of|in place of] "{old}".',
        '[Put|Use|Write] "{new}" [for|in place of|instead of] [every|each|the letter] "{old}" in "{word}".',
        'If every "{old}" in "{word}" [becomes|turns into|is changed to] "{new}", what [is the new word|do you get]?',
        '[Given|Take] the word "{word}"[,| and] replace [the letter |]"{old}" [with|by] "{new}".',
        'The word is "{word}". [Replace|Change] "{old}" [with|by|to] "{new}". What [is the result|do you get]?',
        '"{word}": "{old}" [becomes|turns into|is replaced by] "{new}". [What is the new word?|Write it.]',
        '[Could|Can|Would] you [please |]replace [every|the letter] "{old}" by "{new}" in "{word}"[ for me|]?',
        'How [is|do you spell] "{word}" [spelled |written |][when|if] "{old}" is replaced by "{new}"?',
        'I have the word "{word}" and [want|need] "{new}" [instead of|in place of] "{old}". What [is it '
        "then|does it look "
        "like|is the new word]?",
        '[Go through|Look at] "{word}" and [change|replace] each "{old}" [to|with] "{new}".',
        '[Swap|Exchange] [the letter |]"{old}" for "{new}" in [the word |]"{word}".',
        '[Find|Give|Return|Tell me] the word [you get|that results] when "{old}" is [changed to|replaced with] '
        '"{new}" in '
        '"{word}".',
        'Old letter: "{old}". New letter: "{new}". Word: "{word}". [Write the new word.|What is the result?]',
        'What does "{word}" [look like|become] with "{new}" [instead of|for] every "{old}"?',
        'Make [a new word|a change]: in "{word}" [every|each] "{old}" [becomes|turns into] "{new}".',
        'My keyboard writes "{new}" instead of "{old}". What do I get when I type "{word}"?',
        'Take out every "{old}" [of|from] "{word}" and put "{new}" [in its place|there].',
    ),
    held_out=(
        'Please write the word "{word}" with each "{old}" changed to "{new}".',
        'What is the new word when you swap "{old}" for "{new}" in "{word}"?',
        'Take "{word}" and put "{new}" in place of every "{old}".',
        'Can you change the letter "{old}" to "{new}" in "{word}"?',
        'In "{word}", "{old}" turns into "{new}". Give me the result.',
    ),
    frames=(
        "In the word {word}, {old} [becomes|turns into] {new}.\n{steps}\nThe new word is {result}.",
        "Writing {new} instead of {old}, {word} becomes {result}: {steps}",
        "{word} with {new} in place of {old}:\n{steps}\n{result}",
    ),
)

JOIN = instruction(
    "join_words",
    _draw_join,
    phrasings=(
        '[Join|Please join|Connect|Link] the words "{words}" with "{sep}".',
        '[Put|Write|Place|Insert] "{sep}" between the words "{words}".',
        'What [do you get|is the result|string results] [if|when] [you join|one joins|joining] "{words}" with "{sep}"?',
        '[Glue|Join|Combine|Connect|Link] "{words}" [together |into one string |]with "{sep}" [between them|in '
        "between].",
        '[Given|Take] the words "{words}"[,| and] [join|connect|combine] them with "{sep}".',
        'The words are "{words}". [Join them with|Connect them by|Put between them] "{sep}".',
        '"{words}": join [with|using] "{sep}".',
        'I have the words "{words}". [Make|Build|Write] one string with "{sep}" between [the words|them].',
        '[Could|Can|Would] you [please |][join|connect] "{words}" with "{sep}"[ for me|]?',
        '[Use|Take] "{sep}" [to join|as the separator for|to connect|to link] "{words}".',
        '[Make|Build|Create|Produce] one string [from|of|out of] "{words}", [separated by|with the '
        "separator|joined by] "
        '"{sep}".',
        'Separator: "{sep}". Words: "{words}". [Join them.|What is the joined string?]',
        '[Replace|Change] [the commas|each comma and space] in "{words}" [by|with|to] "{sep}".',
        'How do you write "{words}" [joined by|connected by|separated by|with] "{sep}"[ instead of commas|]?',
        '[Show|Tell|Give] me the words "{words}" joined [with|by] "{sep}".',
        'With "{sep}" as the separator, what [do you get from|is the joined string of] "{words}"?',
        '[Write|Type] the list "{words}" as one string[,| and] [using|with] "{sep}" between [words|the '
        "items|the words].",
        'Join [the list|the items|all the words of] "{words}" into one string, using "{sep}".',
        '[Turn|Change] "{words}" into one string [joined|connected|linked] with "{sep}".',
        'Between [each two|all] words of "{words}"[,| please] [put|write|place] "{sep}" and no spaces.',
        'What does "{words}" look like [joined by|as one string with] "{sep}"?',
    ),
    held_out=(
        'Please connect the list "{words}" using "{sep}".',
        'What is the string when the words "{words}" are joined by "{sep}"?',
        'Take "{words}" and write "{sep}" between the items to make one string.',
        'Can you link the words "{words}" with "{sep}"?',
        'Words: "{words}". Build one string with the separator "{sep}".',
    ),
    frames=(
        "The words {words} joined [with|by] {sep} make {result}",
        "With {sep} between the words, {words} becomes {result}",
        "{words} -> {result}",
    ),
)

ACRONYM = instruction(
    "acronym",
    _draw_acronym,
    phrasings=(
        '[Make|Build|Form|Create] an acronym [of|from|out of|for] "{words}".',
        'What is the acronym [of|for|made from] "{words}"?',
        '[Take|Write|Put together|Join] the first letters of [the words |]"{words}"[ as capitals| in capitals|].',
        '[Give|Find|Tell] me the acronym [of|for] "{words}".',
        '[Given|Take] the words "{words}"[,| and] [make|form|build] [their acronym|an acronym].',
        'The words are "{words}". What is their acronym?',
        '"{words}": [acronym, please|first letters in capitals|make an acronym|what is the acronym?]',
        '[Shorten|Abbreviate] "{words}" to [its|the] [initials|first letters|acronym].',
        'What [are|is made by] the initials of [the words |]"{words}"?',
        '[Could|Can|Would] you [please |][make|form|build] an acronym [from|of] "{words}"[ for me|]?',
        'I have the [name|words|phrase] "{words}". What [is the acronym|are the initials]?',
        '[Use|Take] the first letter of [each|every] word in "{words}"[,| and] [to make|and write|to form] an acronym.',
        'Which acronym [stands for|belongs to|is short for] "{words}"?',
        'If [each|every] word of "{words}" is [cut|shortened] to its first letter, what [do you get|acronym is that]?',
        '[Write|Spell] the initials of "{words}"[ as one word| together| in capital letters|].',
        'How do you [abbreviate|shorten] "{words}" with [its initials|first letters]?',
        'First letters of "{words}", [as an acronym|in capitals|together in one word]?',
        'A club is [named|called] "{words}". What [is its acronym|are its initials]?',
        '[Return|Produce|Show] the capital initials of [the phrase |]"{words}".',
        'What [do you get|results] [when you|if you] [take|join|put together] the first letters of "{words}"?',
        'The phrase "{words}" needs an acronym. [What is it?|Make it.|Write it.]',
    ),
    held_out=(
        'Please write the acronym that stands for "{words}".',
        'Take the first letter of every word of "{words}". What is the acronym?',
        'How is "{words}" shortened to its initials?',
        'Can you give me the initials of "{words}" in capitals?',
        'I have the phrase "{words}". Make its acronym.',
    ),
    frames=(
        "The acronym of {words} is {result}: {steps}",
        "[Taking|We take] the first letters of {words}.\n{steps}\nTogether they make {result}.",
        "{result} is short for {words}. {steps}",
    ),
)

FAMILIES = (REVERSE, COUNT_LETTER, UPPERCASE, REPLACE, JOIN, ACRONYM)
