"""Arithmetic with every step written out: addition, subtraction, multiplication, division, comparison."""

import random

from distill.tasks.build import instruction, worked
from distill.tasks.types import Draw


def _number(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _digits(number: int, width: int) -> list[int]:
    """Digits from the ones up, padded with zeros."""
    return [number // 10**i % 10 for i in range(width)]


def addition_steps(a: int, b: int) -> list[str]:
    """Column addition from the ones up, carries written out."""
    width = max(len(str(a)), len(str(b)))
    steps, carry = [], 0
    for i, (x, y) in enumerate(zip(_digits(a, width), _digits(b, width), strict=True)):
        total = x + y + carry
        left = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        carry = total // 10
        last = i == width - 1
        tail = f"write {total}" if last or not carry else f"write {total % 10} carry 1"
        steps.append(f"{left} = {total}, {tail}")
    return steps


def subtraction_steps(a: int, b: int) -> list[str]:
    """Column subtraction of b <= a from the ones up, borrows written out."""
    width = len(str(a))
    steps, borrow = [], 0
    for x, y in zip(_digits(a, width), _digits(b, width), strict=True):
        total = x - y - borrow
        left = f"{x + 10 if total < 0 else x} - {y}" + (" - 1" if borrow else "")
        borrow = int(total < 0)
        steps.append(f"{left} = {total % 10}, write {total % 10}" + (" borrow 1" if borrow else ""))
    return steps


def multiplication_steps(a: int, b: int) -> list[str]:
    """Digit by digit product of a with a one-digit b, from the ones up."""
    steps, carry, digits = [], 0, _digits(a, len(str(a)))
    for i, x in enumerate(digits):
        product = x * b
        total = product + carry
        sum_ = f", {product} + {carry} = {total}" if carry else ""
        carry = total // 10
        tail = f"write {total}" if i == len(digits) - 1 else f"write {total % 10} carry {carry}"
        steps.append(f"{x} x {b} = {product}{sum_}, {tail}")
    return steps


def division_steps(a: int, b: int) -> list[str]:
    """Long division by a one-digit b, from the highest digit down."""
    steps, rest = [], 0
    for digit in str(a):
        part = rest * 10 + int(digit)
        rest = part % b
        steps.append(f"{part} / {b} = {part // b} rest {rest}")
    return steps


def comparison_steps(a: int, b: int) -> list[str]:
    """Digits from the left until two differ, or the lengths of the numbers."""
    left, right = str(a), str(b)
    if len(left) != len(right):
        return [f"{len(left)} digits, {len(right)} digits"]
    steps = []
    for x, y in zip(left, right, strict=True):
        steps.append(f"{x} {'=' if x == y else '<' if x < y else '>'} {y}")
        if x != y:
            break
    return [", ".join(steps)]


def _draw_add(rng: random.Random) -> Draw:
    a = _number(rng, 11, 999)
    b = _number(rng, 11, 999 if rng.random() < 0.7 else 99)
    return worked(
        {"a": str(a), "b": str(b)},
        steps=addition_steps(a, b),
        result=str(a + b),
        key=f"{min(a, b)}+{max(a, b)}",
    )


def _draw_subtract(rng: random.Random) -> Draw:
    a = _number(rng, 101, 999) if rng.random() < 0.75 else _number(rng, 30, 99)
    b = _number(rng, 11, a - 1)
    return worked({"a": str(a), "b": str(b)}, steps=subtraction_steps(a, b), result=str(a - b), key=f"{a}-{b}")


def _draw_multiply(rng: random.Random) -> Draw:
    a = _number(rng, 102, 999) if rng.random() < 0.6 else _number(rng, 12, 99)
    b = _number(rng, 2, 9)
    return worked({"a": str(a), "b": str(b)}, steps=multiplication_steps(a, b), result=str(a * b), key=f"{a}x{b}")


def _draw_divide(rng: random.Random) -> Draw:
    b = _number(rng, 2, 9)
    quotient = _number(rng, 11, 450)
    a = quotient * b
    return worked({"a": str(a), "b": str(b)}, steps=division_steps(a, b), result=str(quotient), key=f"{a}/{b}")


def _draw_compare(rng: random.Random) -> Draw:
    a = _number(rng, 100, 9999) if rng.random() < 0.5 else _number(rng, 100, 999)
    if rng.random() < 0.6:  # a near miss: same length, one digit changed
        place = 10 ** _number(rng, 0, len(str(a)) - 2)
        b = a - (a // place % 10) * place + _number(rng, 0, 9) * place
    else:
        b = _number(rng, 100, 9999)
    sign = "=" if a == b else "<" if a < b else ">"
    return worked(
        {"a": str(a), "b": str(b)},
        steps=comparison_steps(a, b),
        result=f"{a} {sign} {b}",
        key=f"{a}?{b}",
    )


ADD = instruction(
    "add",
    _draw_add,
    phrasings=(
        "[What is|What's|Tell me what is] {a} + {b}?",
        "[Add|Please add|Now add] {a} and {b}[ together|].",
        "[Calculate|Compute|Work out|Find|Evaluate] {a} plus {b}.",
        "[Find|Give me|Calculate|Compute|Determine] the [sum|total] of {a} and {b}.",
        "How much is {a} [plus|and|added to] {b}?",
        "[What|How much] do {a} and {b} [make|add up to|come to][ together| in total|]?",
        "{a} + {b} = ?",
        "If I [add|put together] {a} and {b}, what [number |total |]do I get?",
        "I have [the numbers|two numbers,] {a} and {b}. [What is their sum?|What do they add up to?|Add them.]",
        "Given [the numbers|two numbers,] {a} and {b}, [find|compute|return|give] [their sum|the sum|their total].",
        "{a} and {b}: [what is the sum?|add them|find the total|sum, please].",
        "[Take|Start with] {a} and add {b}[ to it|]. What [is the result|do you get]?",
        "[Sum|Add up|Total] [the numbers|the two numbers|] {a} and {b}.",
        "[Please tell me|Can you tell me|Do you know|I want to know|I would like to know] the sum of {a} and {b}.",
        "[Work out|Do|Solve] the addition {a} + {b}[, column by column|, carrying where needed|].",
        "Add {b} to {a}[ and give the result|].",
        "What [number |total |]do you get [when you add|by adding|from adding] {a} and {b}?",
        "[Increase|Raise] {a} by {b}. What is the [new number|result]?",
        "[My first number is|The first number is] {a}[,| and] the second[ one|] is {b}. [Add them.|What is the total?]",
        "[Could|Can|Would] you [please |]add {a} [and|to] {b}[ for me|]?",
        "What is the [sum|total|result] of adding {a} [and|to] {b}?",
        "{a} plus {b} [is what|makes what|equals what|is how much]?",
        "[There are|I see] {a} on the left and {b} on the right. How [much|many] in total?",
    ),
    held_out=(
        "What is the total when {a} and {b} are added?",
        "Please find the number you get by adding {b} to {a}.",
        "Two numbers, {a} and {b}: what do they come to?",
        "Can you work out {a} + {b} for me?",
        "Tell me how much {a} plus {b} makes.",
    ),
    frames=(
        "[Adding|We add] {a} and {b} column by column, from the right:\n{steps}\n[So the sum is|The total is] "
        "{result}.",
        "{a} + {b}\n{steps}\n{a} + {b} = {result}",
        "The sum of {a} and {b} is {result}. The columns are:\n{steps}",
        "Column addition of {a} and {b}.\n{steps}\nRead from the bottom to the top, this gives {result}.",
    ),
)

SUBTRACT = instruction(
    "subtract",
    _draw_subtract,
    phrasings=(
        "[What is|What's|Tell me what is] {a} - {b}?",
        "[Subtract|Take|Please subtract|Deduct] {b} from {a}.",
        "[Calculate|Compute|Work out|Find|Evaluate] {a} minus {b}.",
        "[Find|Give me|Calculate|Compute|Determine] the difference [between {a} and {b}|of {a} and {b}].",
        "How much is {a} [minus|less] {b}?",
        "{a} - {b} = ?",
        "If I [take|subtract] {b} from {a}, what [is left|remains|do I get]?",
        "I have {a} and [take away|give away|remove|lose] {b}. [How much is left?|How many are left?|What remains?]",
        "[Given|Take] [the numbers|two numbers,] {a} and {b}, [find|compute|return|give] [their difference|the "
        "difference].",
        "{a} and {b}: [what is the difference?|subtract the second from the first.|find the difference.]",
        "[Take|Start with] {a} and [subtract|take away|remove] {b}. What [is the result|do you get|is left]?",
        "[Please tell me|Can you tell me|Do you know|I want to know] the difference between {a} and {b}.",
        "[Work out|Do|Solve] the subtraction {a} - {b}[, column by column|, borrowing where needed|].",
        "What [number |]do you get [when you subtract|by subtracting|when you take|if you take] {b} from {a}?",
        "[Decrease|Reduce|Lower] {a} by {b}. What is the [new number|result]?",
        "[My first number is|The first number is] {a}[,| and] the second[ one|] is {b}. What is the difference?",
        "[Could|Can|Would] you [please |]subtract {b} from {a}[ for me|]?",
        "[By how much is {a} larger than {b}?|How much larger than {b} is {a}?|How much more than {b} is {a}?]",
        "{a} minus {b} [is what|makes what|equals what|is how much]?",
        "From {a}[,|] [take away|subtract|remove] {b}[ and give the result|].",
        "What must be added to {b} to [get|make|reach] {a}?",
        "How much is left [of {a} after taking away {b}|when {b} is taken from {a}|if {b} is removed from {a}]?",
        "How [far|far away] is {b} from {a}?",
    ),
    held_out=(
        "What is left when you subtract {b} from {a}?",
        "Please find out how much {a} less {b} is.",
        "Start with {a}, then take {b} away. What remains?",
        "Can you work out {a} - {b} for me?",
        "The numbers are {a} and {b}. Give me their difference.",
    ),
    frames=(
        "[Subtracting|We subtract] {b} from {a} column by column, from the right:\n{steps}\nThe difference is "
        "{result}.",
        "{a} - {b}\n{steps}\n{a} - {b} = {result}",
        "Taking {b} away from {a} leaves {result}. The columns are:\n{steps}",
        "Column subtraction, {a} minus {b}.\n{steps}\nRead from the bottom to the top, this gives {result}.",
    ),
)

MULTIPLY = instruction(
    "multiply",
    _draw_multiply,
    phrasings=(
        "[What is|What's|Tell me what is] {a} x {b}?",
        "[Multiply|Please multiply|Now multiply] {a} [by|with|and] {b}.",
        "[Calculate|Compute|Work out|Find|Evaluate] {a} times {b}.",
        "[Find|Give me|Calculate|Compute|Determine] the product of {a} and {b}.",
        "How much is {a} [times|multiplied by] {b}?",
        "{a} x {b} = ?",
        "If I multiply {a} [by|and|with] {b}, what [number |]do I get?",
        "I have [the numbers|two numbers,] {a} and {b}. [What is their product?|Multiply them.]",
        "[Given|Take] [the numbers|two numbers,] {a} and {b}, [find|compute|return|give] [their product|the product].",
        "{a} and {b}: [what is the product?|multiply them|find the product|product, please].",
        "[Take|Start with] {a} and multiply it by {b}. What [is the result|do you get]?",
        "[Please tell me|Can you tell me|Do you know|I want to know] the product of {a} and {b}.",
        "[Work out|Do|Solve] the multiplication {a} x {b}[, digit by digit|, carrying where needed|].",
        "What [number |]do you get [when you multiply|by multiplying|from multiplying] {a} [by|and|with] {b}?",
        "[One box holds|There are] {a} [things|pieces|items][ in one box|]. How many [things|pieces|items] are "
        "in {b} boxes?",
        "[My first number is|The first number is] {a}[,| and] the second[ one|] is {b}. What is the product?",
        "[Could|Can|Would] you [please |]multiply {a} by {b}[ for me|]?",
        "{a} times {b} [is what|makes what|equals what|is how much]?",
        "[Add up|Take] {b} times the number {a}. What is the result?",
        "[If|When] {a} is multiplied by {b}, what [is the result|comes out]?",
        "What is the [product|result] of multiplying {a} [by|and|with] {b}?",
        "{b} times {a}, [what is it|how much is that|what does it make]?",
        "How many are {b} [groups|rows|boxes] of {a}[ each|]?",
    ),
    held_out=(
        "What do you get when {a} is multiplied by {b}?",
        "Please find the number that {a} times {b} makes.",
        "Take {a} and {b} and tell me their product.",
        "Can you work out {a} x {b} for me?",
        "There are {b} boxes of {a} items each. How many items is that?",
    ),
    frames=(
        "[Multiplying|We multiply] {a} by {b}, digit by digit from the right:\n{steps}\nThe product is {result}.",
        "{a} x {b}\n{steps}\n{a} x {b} = {result}",
        "The product of {a} and {b} is {result}. Each digit is multiplied by {b}:\n{steps}",
        "{b} boxes with {a} pieces each hold {result} pieces, because\n{steps}",
    ),
)

DIVIDE = instruction(
    "divide",
    _draw_divide,
    phrasings=(
        "[What is|What's|Tell me what is] {a} / {b}?",
        "[Divide|Please divide|Now divide] {a} by {b}.",
        "[Calculate|Compute|Work out|Find|Evaluate] {a} divided by {b}.",
        "[Find|Give me|Calculate|Compute|Determine] the quotient of {a} and {b}.",
        "How much is {a} [divided by|over] {b}?",
        "{a} / {b} = ?",
        "If I divide {a} by {b}, what [number |]do I get?",
        "I have {a} [things|pieces|items] and [share|split|divide] them [equally|evenly] among {b} "
        "[people|friends|boxes]. "
        "How many [does each get|does each friend get|are in each]?",
        "[Given|Take] [the numbers|two numbers,] {a} and {b}, [find|compute|return|give] [their quotient|the "
        "quotient].",
        "{a} and {b}: [what is the quotient?|divide the first by the second.|find the quotient.]",
        "[Take|Start with] {a} and divide it by {b}. What [is the result|do you get]?",
        "[Please tell me|Can you tell me|Do you know|I want to know] the quotient of {a} and {b}.",
        "[Work out|Do|Solve] the [long division|division] {a} / {b}[, digit by digit|].",
        "What [number |]do you get [when you divide|by dividing|from dividing] {a} by {b}?",
        "How many times does {b} [go|fit] into {a}?",
        "[Find|Tell me] how often {b} [goes|fits] into {a}.",
        "[Split|Share|Divide] {a} into {b} equal [parts|groups|shares]. How [big|large] is each[ one|]?",
        "[Could|Can|Would] you [please |]divide {a} by {b}[ for me|]?",
        "{a} divided by {b} [is what|makes what|equals what|is how much]?",
        "[What|Which] number times {b} [gives|makes|is] {a}?",
        "[If|When] {a} is divided by {b}, what [is the result|comes out]?",
        "What is the result of dividing {a} by {b}?",
        "{a} [things|pieces|items] are put into groups of {b}. How many groups [are there|do we get]?",
        "[How much is|What is] one part when {a} is [split|shared|divided] into {b} equal parts?",
    ),
    held_out=(
        "What do you get when {a} is divided by {b}?",
        "Please find how many times {b} goes into {a}.",
        "{a} items are shared equally among {b} friends. How many does each friend get?",
        "Can you work out {a} / {b} for me?",
        "Give me the result of the division of {a} by {b}.",
    ),
    frames=(
        "[Dividing|We divide] {a} by {b}, from the left digit to the right:\n{steps}\nThe quotient is {result}.",
        "{a} / {b}\n{steps}\n{a} / {b} = {result}",
        "{b} goes into {a} exactly {result} times. Long division:\n{steps}",
        "{a} pieces in {b} equal groups make {result} in each, because\n{steps}",
    ),
)

COMPARE = instruction(
    "compare_numbers",
    _draw_compare,
    phrasings=(
        "[Compare|Please compare] [the numbers|] {a} and {b}[ with <, > or =|].",
        "[Write|Put|Place|Set] <, > or = between {a} and {b}.",
        "Which sign [goes|belongs|fits] between {a} and {b}[: <, > or =|]?",
        "[What is|What's] the [right|correct] sign between {a} and {b}[: <, > or =|]?",
        "[Fill in|Write|Choose|Pick] the [right|correct|missing] sign (<, > or =): {a} _ {b}",
        "{a} _ {b}: [which|what] sign is [missing|right|correct]?",
        "Is {a} less than, equal to or greater than {b}? [Use|Write|Answer with] a sign.",
        "Given {a} and {b}, [write|give|show] [the comparison|how they compare][ with a sign|].",
        "How do {a} and {b} compare? [Write it|Answer|Show it] with <, > or =.",
        "[Decide|Find out|Determine|Check] [whether|if] {a} is less than, greater than or equal to {b}[, with "
        "a sign|].",
        "[Make|Write|Complete] a true comparison [of|with|from] {a} and {b}[, using <, > or =|].",
        "I have [the numbers|two numbers,] {a} and {b}. [Compare them|How do they compare|Put the sign between them].",
        "[Could|Can|Would] you [please |]compare {a} [with|to|and] {b}[ for me|]?",
        "{a} and {b}: [compare them.|put the right sign between them.|which sign belongs here?]",
        "[Use|Choose|Take] one of the signs <, > and = to compare {a} [with|to|and] {b}.",
        "[Tell me|Show me] how {a} compares [to|with] {b}, [using|with] a sign.",
        "The first number is {a}[,| and] the second[ one|] is {b}. Which sign [stands|goes] between them?",
        "[Complete|Solve] the comparison {a} ? {b} [with|using] the [right|correct] sign.",
        "Less, greater or equal? {a} [and|or] {b}",
        "[Look at|Take] {a} and {b}, digit by digit, and [write|give|put] the [right|correct] sign between them.",
        "[What|Which] comparison of {a} and {b} is [true|right|correct][: less, greater or equal|]?",
    ),
    held_out=(
        "Please put the correct sign between {a} and {b}.",
        "Two numbers, {a} and {b}: which sign fits, <, > or =?",
        "Can you show with <, > or = how {a} compares to {b}?",
        "Find out how {a} and {b} compare and write the sign.",
        "Complete with <, > or =: {a} ? {b}",
    ),
    frames=(
        "[Comparing|We compare] {a} and {b} from the left: {steps}. [So|Therefore] {result}.",
        "{result}, because {steps}.",
        "The numbers {a} and {b}.\n{steps}\n{result}",
    ),
)

FAMILIES = (ADD, SUBTRACT, MULTIPLY, DIVIDE, COMPARE)
