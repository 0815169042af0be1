"""Two-step word problems whose sentences carry the numbers."""
# ruff: noqa: SIM905  (a list of words reads best as running text)

import random

from distill.tasks.build import instruction, worked
from distill.tasks.lexicon import CATEGORIES, NAMES
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

THINGS = (
    "apples pears lemons plums mangos coins stamps marbles pencils books cards shells buttons stickers "
    "balloons cookies "
    "candles ribbons bottles boxes tickets roses stones toys keys spoons plates cups bells beads"
).split()
SHOP_THINGS = ("pen book cup plate lamp brush towel basket candle ball box card map spoon bowl hat".split()) + list(
    CATEGORIES["fruit"]
)


def _number(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _draw_gain_loss(rng: random.Random) -> Draw:
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    a, b = _number(rng, 5, 60), _number(rng, 3, 39)
    c = _number(rng, 2, min(a + b - 1, 50))
    return worked(
        {"name": name, "thing": thing, "a": str(a), "b": str(b), "c": str(c)},
        steps=[f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"],
        result=str(a + b - c),
        key=f"{a}+{b}-{c}",
    )


def _draw_change(rng: random.Random) -> Draw:
    name, thing = pick(rng, NAMES), pick(rng, SHOP_THINGS)
    n, price = _number(rng, 2, 9), _number(rng, 2, 12)
    cost = n * price
    money = _number(rng, cost + 1, max(100, cost + 1))
    return worked(
        {"name": name, "thing": thing, "n": str(n), "price": str(price), "money": str(money)},
        steps=[f"{n} x {price} = {cost}", f"{money} - {cost} = {money - cost}"],
        result=str(money - cost),
        key=f"{money}-{n}x{price}",
    )


GAIN_LOSS = instruction(
    "word_gain_loss",
    _draw_gain_loss,
    phrasings=(
        '"{name}" has {a} "{thing}", [gets|receives|finds|buys] {b} more and [gives away|loses|sells] {c}. '
        'How many "{thing}" [are left|does "{name}" have now|remain]?',
        '"{name}" [had|owned] {a} "{thing}". [Then|Later] "{name}" [got|received|found|bought] {b} more and '
        "[gave away|lost|sold] {c}. How many are left?",
        '[First|At first] "{name}" has {a} "{thing}". [Then|Next] {b} more [come|are added]. '
        "[Then|After that] {c} are [given away|lost|sold|taken away]. How many [are there now|are left]?",
        'How many "{thing}" does "{name}" have [left|now|in the end] after starting with {a}, '
        "[getting|finding|buying] {b} "
        "more and [giving away|losing|selling] {c}?",
        'There are {a} "{thing}" [in a box|on a table|in a shop]. "{name}" [adds|brings|puts in] {b} more and '
        "[takes out|takes away|removes] {c}. How many [are there now|are left|remain]?",
        '"{name}" starts with {a} "{thing}", [gets|finds|buys] {b}, then [loses|gives away|sells] {c}. '
        "[What is left|How many are left|How many remain]?",
        'In the morning "{name}" had {a} "{thing}". During the day "{name}" [got|found|bought] {b} and in the evening '
        "[gave away|lost|sold] {c}. How many [are left|remain]?",
        'A friend gives "{name}" {b} "{thing}". Before that "{name}" had {a}. Now {c} are [lost|sold|given away]. '
        'How many does "{name}" have [left|now]?',
        '[Solve|Work out] this[ problem| word problem|]: "{name}" has {a} "{thing}", gets {b} more, then gives '
        "away {c}. "
        "How many are left?",
        '"{thing}": "{name}" has {a}, [gets|buys|finds] {b}, [loses|sells|gives away] {c}. How many [now|are '
        "left|remain]?",
        '[Given that|If] "{name}" has {a} "{thing}", [gets|buys|finds] {b} more and [loses|sells|gives away] {c}, '
        "how many are left?",
        '[Find|Tell me|Calculate|Work out] how many "{thing}" "{name}" has [left|now|in the end]: {a} at '
        "first, {b} more "
        "[later|after that], {c} [given away|lost|sold].",
        'My friend "{name}" [collected|had] {a} "{thing}", then [found|got|bought] another {b}, but '
        "[lost|sold|gave away] "
        "{c}. How many [remain|are left]?",
        '"{name}" [keeps|holds|owns] {a} "{thing}". After [getting|buying|finding] {b} more, "{name}" '
        "[gives {c} to a friend|gives {c} away|loses {c}|sells {c}]. How many [are left|remain]?",
        'A [box|bag|basket] of "{name}" holds {a} "{thing}". {b} go in and {c} come out. '
        "How many are [in it now|left|in the box now]?",
        '"{name}" [bought|got|found] {a} "{thing}" [on Monday|one day] and {b} more [on Tuesday|the next day], then '
        "[lost|sold|gave away] {c}. How many are left?",
        'Start: {a} "{thing}". "{name}" [adds|gets|finds] {b}. Then "{name}" [loses|sells|gives away] {c}. '
        "[End|In the end]: how many?",
        'Please [help|tell] "{name}": with {a} "{thing}" at first, {b} more [bought|found|added] and {c} '
        "[sold|lost|given away], how many are left?",
        '"{name}" needs to know how many "{thing}" are left after [having|starting with] {a}, [getting|adding] {b} and '
        "[losing|giving away] {c}.",
        'How many "{thing}" remain if "{name}" has {a}, [gets|buys|finds|receives] {b} more and [loses|sells] {c}?',
        'Count the "{thing}" of "{name}": {a} to start with, plus {b} [bought|found], minus {c} '
        "[lost|sold|given away]. "
        "How many [now|are left]?",
    ),
    held_out=(
        '"{name}" had {a} "{thing}" at first, then bought {b} more and sold {c}. How many does "{name}" have '
        "in the end?",
        'How many "{thing}" are left if "{name}" starts with {a}, gets another {b} and gives {c} to a friend?',
        'A box holds {a} "{thing}". "{name}" puts in {b} more and takes away {c}. How many are in the box now?',
        'Work out how many "{thing}" remain: "{name}" has {a}, finds {b} more, then loses {c}.',
        'On Monday "{name}" has {a} "{thing}". On Tuesday {b} more are added and {c} are given away. How many '
        "are there "
        "now?",
    ),
    frames=(
        "{name} had {a} {thing}, got {b} more and gave away {c}.\n{steps}\n{name} had {result} {thing} left.",
        "[First|At first] there were {a} {thing}. {b} more came and {c} went away.\n{steps}\nThere were "
        "{result} {thing} left.",
        "{name} counted {thing}: {a} in the box, {b} added, {c} taken out.\n{steps}\n{result} {thing} stayed "
        "in the box.",
    ),
)

CHANGE = instruction(
    "word_change",
    _draw_change,
    phrasings=(
        '"{name}" buys {n} of "{thing}" for {price} dollars each and pays with {money} dollars. '
        'How much [change|money] does "{name}" get back?',
        'One "{thing}" costs {price} dollars. "{name}" buys {n} and [pays|gives|hands over] {money} dollars. '
        "[How much is the change?|How much change is there?|What is the change?]",
        '"{name}" has {money} dollars and buys {n} of "{thing}" at {price} dollars each. How [much|many dollars] '
        "[is left|remains|are left]?",
        'How much [money|change] [is left|remains] [when|after|if] "{name}" with {money} dollars buys {n} of '
        '"{thing}" at '
        "{price} dollars each?",
        'With {money} dollars, "{name}" pays for {n} of "{thing}". Each[ one|] costs {price} dollars. '
        "[What is left?|What is the change?|How much is left?]",
        'The price of one "{thing}" is {price} dollars. "{name}" takes {n} of them and has {money} dollars. '
        "How [much|much money] is left after paying?",
        '[Find|Work out|Calculate|Tell me] the change: "{name}" pays {money} dollars for {n} of "{thing}" at {price} '
        "dollars each.",
        'If a "{thing}" costs {price} dollars and "{name}" buys {n} of them with {money} dollars, [what|how '
        "much] is the "
        "change?",
        '{money} dollars, {n} of "{thing}", {price} dollars each: how much change does "{name}" get?',
        '"{name}" goes to the shop with {money} dollars and [buys|gets|takes] {n} of "{thing}" for {price} '
        "dollars each. "
        "How [much|many dollars] [is left|are left|remain]?",
        'In a shop a "{thing}" is {price} dollars. "{name}" wants {n} and has {money} dollars. How much '
        "[will be left|is left|money remains]?",
        '[Given|We have] a price of {price} dollars for one "{thing}", {n} bought and {money} dollars paid by '
        '"{name}". '
        "[What is the change?|Find the change.|How much change is due?]",
        '"{name}" pays {money} dollars for {n} of "{thing}". [Each costs|One costs|The price of each is] '
        "{price} dollars. "
        'How much [comes back|does "{name}" get back|is the change]?',
        'What change [does|will] "{name}" get from {money} dollars [when buying|after buying|for] {n} of "{thing}" at '
        "{price} dollars each?",
        '[Solve|Work out] this[ problem| word problem|]: {n} of "{thing}" at {price} dollars each are paid by "{name}" '
        "with {money} dollars. How much is the change?",
        'A "{thing}" costs {price} dollars. How much of {money} dollars [does "{name}" keep|has "{name}" left] '
        "after buying "
        "{n}?",
        'Money of "{name}": {money} dollars. [Shopping|Bought]: {n} of "{thing}", {price} dollars each. '
        "[What|How much] is left?",
        '"{name}" [spends|uses] part of {money} dollars on {n} of "{thing}", {price} dollars each. How much '
        "[is left|remains]?",
        'My friend "{name}" had {money} dollars [at first |]and bought {n} of "{thing}" for {price} dollars '
        "each. How much money "
        '[is left|does "{name}" have now|remains]?',
        'Please [tell|help] "{name}": what is the change from {money} dollars for {n} of "{thing}" at {price} '
        "dollars each?",
        'After buying {n} of "{thing}" for {price} dollars each, how much of the {money} dollars does "{name}" '
        "[keep|have left|still have]?",
    ),
    held_out=(
        'A "{thing}" costs {price} dollars. "{name}" pays for {n} with {money} dollars. How much does "{name}" '
        "get back?",
        'How much money does "{name}" have left after the shop, with {money} dollars at first and {n} of '
        '"{thing}" bought '
        "at {price} dollars each?",
        '"{name}" had {money} dollars. Then "{name}" buys {n} of "{thing}", each for {price} dollars. What remains?',
        'Work out how much change is due: {n} of "{thing}", {price} dollars each, paid by "{name}" with '
        "{money} dollars.",
        'If "{name}" has {money} dollars and takes {n} of "{thing}" at a price of {price} dollars each, how '
        "much money is "
        "left?",
    ),
    frames=(
        "{name} bought {n} of {thing} for {price} dollars each and paid with {money} dollars.\n{steps}\nThe change was "
        "{result} dollars.",
        "One {thing} costs {price} dollars, so {n} of them cost more.\n{steps}\nFrom {money} dollars, {result} "
        "are left.",
        "{name} went to the shop with {money} dollars and took {n} of {thing} at {price} "
        "dollars.\n{steps}\n{name} kept "
        "{result} dollars.",
    ),
)

FAMILIES = (GAIN_LOSS, CHANGE)
