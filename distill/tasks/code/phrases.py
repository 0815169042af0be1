"""Descriptions shared by families: what is kept of a source, what is done to each item, and reductions of either.

Slots: {src} the source, {items}/{item} what is in it, {pred}/{pred1} a predicate (plural, singular), {map} a
participle,
{do} an order about "it", {red} a reducer before a noun phrase, {rdo} the same as an order, {empty} the sentence's end.
"""

from distill.tasks.code.frames import Say

KEEP = (
    "the {items} in {src} that {pred}",
    "all {items} of {src} that {pred}",
    "only those {items} in {src} that {pred}",
    "every {item} in {src} that {pred1}",
    "the {items} that {pred} in {src}",
    "each {item} from {src} that {pred1}",
    "those {items} of {src} which {pred}",
    "whichever of the {items} in {src} {pred}",
    "any and all of the {items} from {src} which {pred}",
    "just the {items} of {src} which {pred}",
    "those of the {items} in {src} that {pred}",
    "whatever {items} {src} has that {pred}",
    "each one of the {items} from {src} which {pred1}",
)
HELD_OUT_KEEP = ("whichever {items} from {src} {pred}", "any {items} of {src} which {pred}")
KEEP_ORDERS = (
    "keep [only |]the {items} in {src} that {pred}",
    "[drop|remove] all {items} from {src} except those that {pred}",
    "filter {src} down to the {items} that {pred}",
    "select [each|every] {item} of {src} that {pred1}",
    "collect in a list the {items} from {src} that {pred}",
    "go over {src} and collect every {item} that {pred1}",
    "walk through {src}, putting any {item} which {pred1} in a list",
    "put all those {items} of {src} which {pred} in a new list",
    "from {src}, pick whichever {items} {pred}",
    "pick the {items} that {pred} out of {src}",
    "search {src} for all {items} that {pred} and collect them",
    "look at each {item} of {src} and keep it if it {pred1}",
    "leave every {item} out of {src} unless it {pred1}",
)
HELD_OUT_KEEP_ORDERS = (
    "go through {src} and put each {item} that {pred1} in a list",
    "pick out of {src} all {items} that {pred}",
)

EACH = (
    "each {item} in {src} {map}",
    "every {item} of {src} {map}",
    "the {items} in {src}, each {map}",
    "all the {items} of {src}, every one {map}",
    "the {items} from {src}, each of them {map}",
    "all of the {items} from {src}, each one {map}",
    "every one of the {items} in {src}, {map}",
    "each of the {items} of {src} {map}",
    "whatever {items} {src} holds, every one {map}",
    "the {items} that are in {src}, every {item} {map}",
    "all {items} that {src} has, each of them {map}",
)
HELD_OUT_EACH = ("the {items} that {src} holds, each one {map}", "all of the {items} in {src}, every {item} {map}")
EACH_ORDERS = (
    "for every {item} in {src}, {do}, and return the [results|list]",
    "take each {item} of {src} and {do}",
    "go through {src}; for each {item}, {do}; return all results",
    "for each of the {items} in {src}: {do}",
    "{do}, for each {item} in {src}",
    "walk through {src}; with each {item}, {do}, and [collect|list] the results",
    "go over the {items} in {src}, {do} each time and give back the results",
    "with each of the {items} of {src}, {do}; give back a list",
    "do this with every {item} of {src}: {do}; then return the results",
    "walk over {src} and for every one of its {items}, {do}",
    "collect the results: with each {item} from {src}, {do}",
)
HELD_OUT_EACH_ORDERS = (
    "walk over the {items} of {src}, with each one {do}, and give back the results",
    "with every {item} from {src}, {do}",
)

KEEP_EACH = (
    "the {items} in {src} that {pred}, each {map}",
    "every {item} of {src} that {pred1}, {map}",
    "all {items} from {src} that {pred}, every one {map}",
    "the {items} that {pred} in {src}, each of them {map}",
    "each {item} in {src} that {pred1}, {map}",
    "whichever of the {items} in {src} {pred}, each {map}",
    "any and all of the {items} of {src} which {pred}, every one {map}",
    "those {items} from {src} which {pred}, each one {map}",
    "just the {items} in {src} that {pred}, every single one {map}",
    "each one of the {items} of {src} which {pred1}, {map}",
    "whatever {items} {src} has that {pred}, each of them {map}",
)
HELD_OUT_KEEP_EACH = (
    "whichever {items} in {src} {pred}, each one {map}",
    "any {items} from {src} which {pred}, each {map}",
)
KEEP_EACH_ORDERS = (
    "take each {item} in {src} that {pred1}, {do}, and collect the results",
    "keep the {items} in {src} that {pred}; for each of them, {do}",
    "for every {item} of {src} that {pred1}, {do}; return the [results|list]",
    "{do}, but only for the {items} in {src} that {pred}",
    "go through {src}: if the {item} {pred1}, {do} and put the result in a list",
    "walk over {src}; with each {item} that {pred1}, {do}, and give back the results",
    "with every {item} from {src} which {pred1}, {do}; list the results",
    "pick all {items} that {pred} from {src}; with each one, {do}",
    "skip the {items} of {src} unless they {pred}; for each one that is left, {do}",
    "go over {src} and, whenever the {item} {pred1}, {do} and keep the result",
    "drop everything from {src} except the {items} which {pred}, and with each that is left, {do}",
)
HELD_OUT_KEEP_EACH_ORDERS = (
    "pick out of {src} all {items} that {pred}, and with each one, {do}",
    "skip everything in {src} except {items} that {pred}; for each that is left, {do}",
)


def listed(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The phrases as lists: every other one says so."""
    return tuple(f"[a list of |the list of |]{phrase}" if i % 2 else phrase for i, phrase in enumerate(phrases))


def reduced(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The reduction of what each phrase names."""
    return tuple(f"{{red}} {phrase}{{empty}}" for phrase in phrases)


def reduced_orders(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The reduction of what each phrase names, as orders, in one step or in two."""
    orders = []
    for i, phrase in enumerate(phrases):
        orders.append(f"{{rdo}} {phrase}{{empty}}")
        if i % 2:
            orders.append(f"[take|make a list of] {phrase}, then {{rdo}} the results{{empty}}")
    return tuple(orders)


REDUCED_KEEP = Say(reduced(KEEP), reduced_orders(KEEP), reduced(HELD_OUT_KEEP), reduced_orders(HELD_OUT_KEEP))
REDUCED_EACH = Say(reduced(EACH), reduced_orders(EACH), reduced(HELD_OUT_EACH), reduced_orders(HELD_OUT_EACH))
REDUCED_KEEP_EACH = Say(
    reduced(KEEP_EACH), reduced_orders(KEEP_EACH), reduced(HELD_OUT_KEEP_EACH), reduced_orders(HELD_OUT_KEEP_EACH)
)
