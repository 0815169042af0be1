"""Lists of words and of numbers: reversing, picking, removing, filtering, largest and smallest, sequences."""

import random

from distill.tasks.build import comma, instruction, worked
from distill.tasks.lexicon import WORDS
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def _count(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _draw_reverse_list(rng: random.Random) -> Draw:
    words = rng.sample(WORDS, _count(rng, 3, 6))
    return worked({"items": comma(words)}, result=comma(words[::-1]), key=comma(words))


def _draw_nth(rng: random.Random) -> Draw:
    words = rng.sample(WORDS, _count(rng, 4, 6))
    n = _count(rng, 1, len(words))
    return worked(
        {"items": comma(words), "n": str(n), "nth": ORDINALS[n - 1]},
        steps=[comma([f"{i} {word}" for i, word in enumerate(words[:n], start=1)])],
        result=words[n - 1],
        key=f"{n} of {comma(words)}",
    )


def _draw_remove_duplicates(rng: random.Random) -> Draw:
    words = rng.sample(WORDS, _count(rng, 2, 4))
    items = [*words, *(pick(rng, words) for _ in range(_count(rng, 1, 2)))]
    rng.shuffle(items)
    seen: list[str] = []
    marks = []
    for item in items:
        marks.append(f"{item} {'again' if item in seen else 'new'}")
        if item not in seen:
            seen.append(item)
    return worked({"items": comma(items)}, steps=[comma(marks)], result=comma(seen), key=comma(items))


def _draw_even(rng: random.Random) -> Draw:
    numbers = [_count(rng, 2, 99) for _ in range(_count(rng, 4, 6))]
    if all(number % 2 for number in numbers):
        numbers[0] -= 1
    marks = [f"{number} {'odd' if number % 2 else 'even'}" for number in numbers]
    result = comma([number for number in numbers if number % 2 == 0])
    return worked({"numbers": comma(numbers)}, steps=[comma(marks)], result=result, key=comma(numbers))


def _draw_extreme(rng: random.Random, *, largest: bool) -> Draw:
    top = 99 if rng.random() < 0.5 else 999
    numbers = rng.sample(range(2, top + 1), _count(rng, 3, 5))
    best, steps = numbers[0], []
    for number in numbers[1:]:
        winner = max(best, number) if largest else min(best, number)
        steps.append(f"{best} or {number}: {winner}")
        best = winner
    return worked({"numbers": comma(numbers)}, steps=[comma(steps)], result=str(best), key=comma(numbers))


def _draw_largest(rng: random.Random) -> Draw:
    return _draw_extreme(rng, largest=True)


def _draw_smallest(rng: random.Random) -> Draw:
    return _draw_extreme(rng, largest=False)


def _draw_sequence(rng: random.Random) -> Draw:
    start, step, length = _count(rng, 1, 150), _count(rng, 2, 20), _count(rng, 4, 5)
    numbers = [start + i * step for i in range(length)]
    after = numbers[-1] + step
    return worked(
        {"numbers": comma(numbers)},
        steps=[f"{numbers[1]} - {numbers[0]} = {step}", f"{numbers[-1]} + {step} = {after}"],
        result=str(after),
        key=comma(numbers[:2]),
    )


REVERSE_LIST = instruction(
    "reverse_list",
    _draw_reverse_list,
    phrasings=(
        '[Reverse|Please reverse|Turn around|Flip] the list "{items}".',
        '[Write|Give|Put|Return] the [items|words|list] "{items}" in [reverse|the opposite|reversed] order.',
        'What is the list "{items}" [in reverse order|reversed|from back to front|in the opposite order]?',
        '[Start|Begin] with the last item of "{items}" and [go|work] [back |]to the first.',
        '[Given|Take] the [list|items|words] "{items}"[,| and] [write|give|list|return] them in reverse[ order|].',
        'The list is "{items}". [Reverse it.|What is it in reverse order?|Turn it around.|List it from back to front.]',
        '"{items}": [the same list in reverse order, please|reverse this list|list these from last to first].',
        'I have a list: "{items}". What [is it|does it look like] [in reverse order|reversed]?',
        '[Could|Can|Would] you [please |]reverse the [list|items|order of the list] "{items}"[ for me|]?',
        '[List|Name] the [items|words] "{items}" from [last to first|the last to the first|the end to the start].',
        'How does the list "{items}" [look|read] [in reverse order|when its order is reversed|from back to front]?',
        '[Change|Turn around|Reverse] the order of the [items|words] "{items}".',
        'If the [list|items] "{items}" [is|are] read from [the end|back to front|the last item], what is the order?',
        '[Show|Tell] me the [list|items] "{items}" in [reverse|reversed|the opposite] order.',
        'Reversed list of "{items}"?',
        'The last shall be first: reorder the [list|items] "{items}".',
        'I want the [items|words] of "{items}" in [the opposite|reverse] order.',
        '[Find|Give|Return|Produce] the reverse of the list "{items}".',
        'Make the last item of "{items}" the first[ one|], and so on. [What is the new list?|]',
        'People stand in a line: "{items}". [The line turns around.|They turn the line around.] What is the new order?',
        '[Go|Read] [backwards |]through the list "{items}" [from the end |]and [list|write] the items.',
    ),
    held_out=(
        'Please list the words "{items}" from the end to the start.',
        'What is the new order when the list "{items}" is reversed?',
        'Take the items "{items}" and write them from last to first.',
        'Can you turn the list "{items}" around?',
        'I have the list "{items}". Give me its items in the opposite order.',
    ),
    frames=(
        "The list {items} in reverse order is {result}.",
        "From back to front, {items} reads {result}.",
        "List: {items}\nReversed: {result}",
    ),
)

NTH = instruction(
    "nth_item",
    _draw_nth,
    phrasings=(
        'What is the {nth} [item|word|entry|element] [of|in] [the list |]"{items}"?',
        '[Give|Tell|Show] me [item|word|element] number {n} [of|in|from] "{items}".',
        '[Which|What] [item|word|one] [is|stands|comes] {nth} in [the list |]"{items}"?',
        '[Find|Name|Return|Write] the {nth} [item|word|element|entry] [of|in] "{items}".',
        '[Given|Take] the list "{items}"[,| and] [give|return|write|name] the {nth} [item|word|element].',
        'The list is "{items}". What is [the {nth} item|item number {n}|the {nth} word|word number {n}]?',
        '"{items}": [item|word|element|number] {n}, please.',
        'I have a list: "{items}". [Which|What] is the {nth}[ one| item| word|]?',
        '[Could|Can|Would] you [please |][pick|find|name] the {nth} [item|word] [of|in|from] "{items}"[ for me|]?',
        '[Pick|Choose|Select|Take] [item|word|element] {n} [of|from] [the list |]"{items}".',
        'Count to {n} in "{items}". [Which|What] [item|word] [is there|do you reach|do you find]?',
        'Which [item|word|element] [is at|stands at|has] [position|place] {n} [of|in] "{items}"?',
        'At [position|place] {n} of "{items}" [there is|stands|we find] [which|what] [item|word]?',
        '[Look at|Go through] [the list |]"{items}" and [give|name|write] the {nth}[ item| word| one|].',
        'If you [go through|read|count] "{items}" from the [start|left], which [item|word] [comes|is] {nth}?',
        'People stand in a line: "{items}". Who or what is {nth}?',
        'I want the {nth} [item|word|element|entry] of [the list |]"{items}"[, only that one|].',
        'In [the list |]"{items}", what [comes|is|stands] {nth}?',
        '{nth} [item|word|element] of "{items}"?',
        '[Extract|Get] the [item|word] at [position|place] {n} [from|of] "{items}".',
        '[Position|Item number|Place]: {n}. List: "{items}". [Which item is it?|Which word is that?|What is there?]',
    ),
    held_out=(
        'Please name the {nth} entry in the list "{items}".',
        'What do you find at position {n} in the list "{items}"?',
        'Which element of "{items}" is number {n}?',
        'Take "{items}" and tell me which word comes {nth}.',
        'Can you give me item {n} of the list "{items}"?',
    ),
    frames=(
        "In the list {items}, the {nth} item is {result}: {steps}",
        "Counting through {items}: {steps}. So number {n} is {result}.",
        "List: {items}\n{steps}\nNumber {n} is {result}.",
    ),
)

REMOVE_DUPLICATES = instruction(
    "remove_duplicates",
    _draw_remove_duplicates,
    phrasings=(
        "[Remove|Delete|Please remove|Drop] [the|all|all the] [duplicates|repeated items|repeated words] "
        '[from|in] "{items}".',
        '[Write|Give|List|Return] "{items}" without [duplicates|repeated items|repetitions|repeats].',
        'What is [the list |]"{items}" without [duplicates|repeated words|its repetitions|repeats]?',
        '[Keep|Leave] each [item|word] of "{items}" only once.',
        '[Given|Take] the list "{items}"[,| and] [remove|delete|drop] the [duplicates|repeated items].',
        'The list is "{items}". [Remove the duplicates.|Keep each item once.|What is left without duplicates?]',
        '"{items}": [no duplicates, please|each item once|without repeats, please|remove what is repeated].',
        'I have a list: "{items}". [Some items are repeated.|Some are there twice.] [Remove the '
        "duplicates.|Keep one of each.]",
        '[Could|Can|Would] you [please |]remove the [duplicates|repeated items] [from|in] "{items}"[ for me|]?',
        '[List|Name|Write] the [different|distinct|unique] [items|words] [of|in] "{items}"[, in order|].',
        'Which [different|distinct|unique] [items|words] [are in|does one find in|make up] "{items}"?',
        '[Clean|Clean up|Tidy] the list "{items}": [each item|every word] [may be there|should appear|may '
        "appear] only once.",
        '[Make|Build] a list of the [unique|distinct|different] [items|words] [of|in|from] "{items}".',
        'If an [item|word] of "{items}" [is repeated|appears again|appears twice], [drop|remove|delete] it. '
        "What is left?",
        '[Show|Tell] me [the list |]"{items}" with [every item|each word] [only once|appearing once].',
        '[Go through|Look at] "{items}" and [drop|skip|remove] every [item|word] that [was there '
        "before|appears again].",
        '[Find|Get|Produce] the [unique|distinct] [items|words|elements] of "{items}".',
        'Some [words|items] in "{items}" are [there twice|repeated]. Write [the list|them] without '
        "[repeats|duplicates].",
        'No [word|item] should appear twice in "{items}". [Fix the list.|Write the new list.|What is the new list?]',
        'I want every [word|item] of "{items}" [just|only] once.',
        'Unique [items|words|elements] of "{items}"?',
        'What [remains|is left] of "{items}" [after removing|when you remove|without] [the duplicates|the '
        "repeated items]?",
    ),
    held_out=(
        'Please keep every word of "{items}" only once.',
        'What is left of the list "{items}" when you drop the repeated words?',
        'Which items are in "{items}", without repeats?',
        'Take "{items}" and write each different item once.',
        'Can you delete the duplicates in the list "{items}"?',
    ),
    frames=(
        "Without repeats, the list {items} becomes {result}. {steps}",
        "Going through {items}: {steps}. Each item once: {result}",
        "List: {items}\n{steps}\nDistinct items: {result}",
    ),
)

KEEP_EVEN = instruction(
    "keep_even",
    _draw_even,
    phrasings=(
        "[Keep|Please keep|Leave] only the even numbers [of|in|from]: {numbers}[.|]",
        "[Which|What] [of the numbers|numbers of|ones of] {numbers} are even?",
        "[List|Name|Write|Give] the even numbers [in|of|from|among] {numbers}.",
        "[Remove|Delete|Drop|Take out] the odd numbers [from|in] {numbers}.",
        "[Given|Take] the numbers {numbers}[,| and] [keep|return|give|list] [only |]the even [ones|numbers].",
        "The numbers are {numbers}. [Which are even?|List the even ones.|Keep only the even ones.|Remove the "
        "odd ones.]",
        "{numbers}: [keep the even ones|even numbers only, please|which are even?|no odd numbers, please]",
        "I have [a list of numbers|some numbers]: {numbers}. [Which ones|Which of them] are even?",
        "[Could|Can|Would] you [please |][pick|list|find] the even numbers [of|in|from] {numbers}[ for me|]?",
        "[Pick|Choose|Select|Filter|Find] the even numbers [of|in|from|out of] {numbers}.",
        "[Go through|Look at|Check] {numbers} and [keep|write|list] [each number|every number|those] that [is "
        "even|can be "
        "halved].",
        "[If|When] [all|the] odd numbers are [removed|deleted|dropped|taken] from {numbers}, what [is left|remains]?",
        "[Show|Tell] me the [even ones|even numbers] [of|in|among] {numbers}.",
        "[Filter|Clean] the list {numbers} so that [only even numbers are left|no odd numbers remain].",
        "Which [ones|numbers] [of|in|among] {numbers} can be divided by 2[ without rest|]?",
        "[Find|Return|Give] all numbers [of|in] {numbers} that [are even|2 divides].",
        "I want [only |]the even numbers [of|from] the list {numbers}.",
        "Even numbers [of|in|among] {numbers}?",
        "[What|Which numbers] [is|are] left of {numbers} without the odd ones?",
        "Odd numbers are not [needed|wanted]: [clean|filter] {numbers}.",
        "[Throw away|Skip|Ignore] the odd numbers [of|in] {numbers} and [list|write|give] [the rest|the others].",
    ),
    held_out=(
        "Please pick the even numbers among {numbers}.",
        "What remains of the list {numbers} when the odd numbers are removed?",
        "Take {numbers} and write only the even ones.",
        "Can you tell me which numbers in {numbers} are even?",
        "Drop the odd ones from the numbers {numbers}.",
    ),
    frames=(
        "The even numbers among {numbers} are {result}, because {steps}.",
        "Checking {numbers}: {steps}. The even ones are {result}.",
        "Numbers: {numbers}\n{steps}\nEven: {result}",
    ),
)

LARGEST = instruction(
    "largest",
    _draw_largest,
    phrasings=(
        "[What is|What's|Tell me] the [largest|biggest|highest|greatest] [of the numbers|number of|of] {numbers}?",
        "[Find|Give|Return|Write|Name] the [maximum|largest number|biggest number|highest number] of {numbers}.",
        "Which [number|one|of the numbers] is [largest|biggest|highest|greatest]: {numbers}?",
        "[Pick|Choose|Select] the [largest|biggest|highest|greatest] [number|one|value] [from|of|in|out of] {numbers}.",
        "[Given|Take] the numbers {numbers}[,| and] [find|give|return|name] the [largest|maximum|biggest "
        "one|greatest].",
        "The numbers are {numbers}. [Which is the largest?|What is the maximum?|Find the biggest one.|Name the "
        "highest.]",
        "{numbers}: [maximum?|which is the biggest?|largest one, please|what is the greatest number?]",
        "I have [a list of numbers|some numbers]: {numbers}. [Which|What] is the [largest|biggest|highest][ "
        "one| number|]?",
        "[Could|Can|Would] you [please |][find|name|pick] the [largest|biggest|highest] [number|one] [of|in] "
        "{numbers}?",
        "[Look at|Go through|Compare] {numbers} and [give|write|name] the [largest|biggest|greatest|highest][ "
        "one| number|].",
        "Among {numbers}, which [number|one] is the [largest|biggest|greatest|highest]?",
        "What is the maximum [value |]of [the list |the numbers |]{numbers}?",
        "[Maximum|Largest number|Biggest number|Greatest value] of {numbers}?",
        "[Determine|Show me|Tell me] the [maximum|largest value|highest value|biggest number] [of|in|among] {numbers}.",
        "No [number|other number] in {numbers} is [larger|bigger|higher|greater] than [which one|this one]: name it.",
        "The scores were {numbers}. [Which score was the highest?|What was the best score?|Find the highest score.]",
        "[Players|Teams] have {numbers} points. How many points does the [winner|best one|best team] have?",
        "I want the [largest|biggest|highest|greatest] [number|value] in the list {numbers}.",
        "If you [compare|look at] {numbers}, which [number|one] is the [largest|biggest|highest|greatest]?",
        "[Of|Out of] the numbers {numbers}, [name|give|find] the [largest|biggest|greatest|maximum].",
        "Which [value|number] in the list {numbers} is [bigger|larger|higher|greater] than all the others?",
    ),
    held_out=(
        "Please name the biggest of the numbers {numbers}.",
        "What is the highest value in the list {numbers}?",
        "Take {numbers} and tell me which one is the greatest.",
        "Can you find the maximum among {numbers}?",
        "Of {numbers}, which number is larger than all the others?",
    ),
    frames=(
        "The largest of {numbers} is {result}: {steps}",
        "Comparing one after the other, {steps}. So the maximum of {numbers} is {result}.",
        "Numbers: {numbers}\n{steps}\nLargest: {result}",
    ),
)

SMALLEST = instruction(
    "smallest",
    _draw_smallest,
    phrasings=(
        "[What is|What's|Tell me] the [smallest|lowest|least] [of the numbers|number of|of] {numbers}?",
        "[Find|Give|Return|Write|Name] the [minimum|smallest number|lowest number] of {numbers}.",
        "Which [number|one|of the numbers] is [smallest|lowest|least]: {numbers}?",
        "[Pick|Choose|Select] the [smallest|lowest] [number|one|value] [from|of|in|out of] {numbers}.",
        "[Given|Take] the numbers {numbers}[,| and] [find|give|return|name] the [smallest|minimum|smallest "
        "one|lowest].",
        "The numbers are {numbers}. [Which is the smallest?|What is the minimum?|Find the smallest one.|Name "
        "the lowest.]",
        "{numbers}: [minimum?|which is the smallest?|smallest one, please|what is the lowest number?]",
        "I have [a list of numbers|some numbers]: {numbers}. [Which|What] is the [smallest|lowest][ one| number|]?",
        "[Could|Can|Would] you [please |][find|name|pick] the [smallest|lowest] [number|one] [of|in] {numbers}?",
        "[Look at|Go through|Compare] {numbers} and [give|write|name] the [smallest|lowest][ one| number|].",
        "Among {numbers}, which [number|one] is the [smallest|lowest]?",
        "What is the minimum [value |]of [the list |the numbers |]{numbers}?",
        "[Minimum|Smallest number|Lowest number|Least value] of {numbers}?",
        "[Determine|Show me|Tell me] the [minimum|smallest value|lowest value|least number] [of|in|among] {numbers}.",
        "No [number|other number] in {numbers} is [smaller|lower|less] than [which one|this one]: name it.",
        "The prices are {numbers}. [Which price is the lowest?|What is the best price?|Find the lowest price.]",
        "[Runners|Racers] needed {numbers} seconds. How many seconds did the [winner|fastest] need?",
        "I want the [smallest|lowest] [number|value] in the list {numbers}.",
        "If you [compare|look at] {numbers}, which [number|one] is the [smallest|lowest]?",
        "[Of|Out of] the numbers {numbers}, [name|give|find] the [smallest|lowest|minimum|least].",
        "Which [value|number] in the list {numbers} is [smaller|lower|less] than all the others?",
    ),
    held_out=(
        "Please name the smallest of the numbers {numbers}.",
        "What is the lowest value in the list {numbers}?",
        "Take {numbers} and tell me which one is the least.",
        "Can you find the minimum among {numbers}?",
        "Of {numbers}, which number is smaller than all the others?",
    ),
    frames=(
        "The smallest of {numbers} is {result}: {steps}",
        "Comparing one after the other, {steps}. So the minimum of {numbers} is {result}.",
        "Numbers: {numbers}\n{steps}\nSmallest: {result}",
    ),
)

SEQUENCE = instruction(
    "next_in_sequence",
    _draw_sequence,
    phrasings=(
        "[What|Which number] comes next[ in the sequence|]: {numbers}?",
        "[Continue|Please continue|Go on with|Extend] the [sequence|pattern|series] {numbers}[ by one number|].",
        "[Find|Give|Write|Name] the next number [in|of] the [sequence|pattern|series] {numbers}.",
        "What is the next [number|term] [in|of|after] {numbers}?",
        "{numbers}, ... [What comes next?|Which number is next?|What is the next number?|How does it go on?]",
        "[Given|Take] the [sequence|pattern|series] {numbers}[,| and] [find|give|return] the next [number|term].",
        "The [sequence|pattern|series] is {numbers}. [What comes next?|What number follows?|Continue it.]",
        "{numbers}: [next number, please|what follows?|continue the pattern|which number is next?]",
        "I [write|see|count] {numbers}. [Which|What] number [comes|is|do I write] next?",
        "[Could|Can|Would] you [please |]continue the [sequence|pattern] {numbers}[ for me|]?",
        "[Complete|Fill in] the [pattern|sequence]: {numbers}, _",
        "Which number [follows|comes after|should follow] {numbers}?",
        "[If|When] the pattern {numbers} [goes on|continues], what is the next [number|term]?",
        "[Look at|Study] the [pattern|sequence|series] {numbers} and [give|predict|tell me] the next [number|term].",
        "[Guess|Predict|Determine|Work out] the [number|term] that [follows|comes after|comes next in] {numbers}.",
        "The numbers {numbers} [grow|go up] by the same [amount|step] [each time|every time]. What is next?",
        "The same [number|amount|step] is added [again and again|each time]: {numbers}. What comes [after that|next]?",
        "[Tell|Show] me how the [sequence|pattern|series] {numbers} [goes on|continues].",
        "One more [number|term] for the [sequence|series|pattern] {numbers}?",
        "Next [term|number] of {numbers}?",
        "A machine prints {numbers}. What will it print next?",
    ),
    held_out=(
        "Please predict which number comes after {numbers}.",
        "What number is next when the sequence {numbers} continues?",
        "Look at {numbers}. How does the pattern go on?",
        "Can you give me the next term of the series {numbers}?",
        "Work out what follows: {numbers}.",
    ),
    frames=(
        "The sequence {numbers} grows by the same step.\n{steps}\nThe next number is {result}.",
        "After {numbers} comes {result}:\n{steps}",
        "Sequence: {numbers}\n{steps}\nNext: {result}",
    ),
)

FAMILIES = (REVERSE_LIST, NTH, REMOVE_DUPLICATES, KEEP_EVEN, LARGEST, SMALLEST, SEQUENCE)
