"""Descriptions of the families on a list of words that no other family shares."""

from distill.tasks.code.frames import Say
from distill.tasks.code.phrases import HELD_OUT_KEEP, KEEP

WORD_SORT = Say(
    nouns=(
        "the {items} in {src} that {pred}, sorted {order}",
        "all {items} of {src} that {pred}, sorted {order}",
        "every {item} from {src} that {pred1}, in a list sorted {order}",
        "whichever of the {items} in {src} {pred}, in a list sorted {order}",
        "those {items} from {src} which {pred}, sorted {order}",
        "a list, sorted {order}, of each {item} in {src} which {pred1}",
        "just the {items} of {src} which {pred}, all sorted {order}",
        "any and all of the {items} from {src} which {pred}, put in a list sorted {order}",
        "the sorted list, {order}, of every {item} in {src} that {pred1}",
        "whatever {items} {src} has that {pred}, sorted {order}",
    ),
    orders=(
        "keep the {items} in {src} that {pred} and sort them {order}",
        "drop all {items} of {src} except those that {pred}, then sort the rest {order}",
        "select each {item} of {src} that {pred1}; return them sorted {order}",
        "pick all {items} which {pred} from {src} and sort them {order}",
        "pick from {src} each {item} that {pred1} and return a list sorted {order}",
        "list every {item} of {src} which {pred1}, sorted {order}",
        "sort {order} whichever {items} in {src} {pred}",
        "take the {items} that {pred} out of {src} and list them, all sorted {order}",
        "go over {src}, collect any {item} which {pred1}, and sort this list {order}",
        "collect the {items} from {src} that {pred}; give them back sorted {order}",
    ),
    held_out_nouns=("whichever {items} of {src} {pred}, sorted {order}",),
    held_out_orders=("pick every {item} that {pred1} from {src} and list them sorted {order}",),
)
WORD_BEST = Say(
    nouns=(
        "the {best} of the {items} in {src} that {pred}, or {default} if there are none",
        "the {best} {item} of {src} that {pred1}; if there is none, {default}",
        "the {best} among all {items} in {src} that {pred}, and {default} when there are none",
        "whichever of the {items} in {src} that {pred} is the {best}, or {default} without any",
        "whichever {item} is the {best} in {src} among those that {pred}, or {default}",
        "the {item} from {src} that is the {best} of those which {pred}, else {default}",
        "of the {items} in {src} which {pred}, the {best} one, with {default} if there is none",
        "the {best} {item} which {pred1} in {src}, or {default} without one",
        "out of all {items} of {src} that {pred}, the {best}, or {default} if none does",
        "the {item} of {src} which {pred1} and is the {best} of all such {items}, else {default}",
    ),
    orders=(
        "find the {best} {item} in {src} that {pred1}; return {default} if there is none",
        "keep the {items} of {src} that {pred} and return the {best}, or {default} if none is left",
        "among the {items} in {src} that {pred}, find the {best} ({default} if there are none)",
        "pick from {src} the {best} {item} which {pred1}; give {default} if there is none",
        "pick the {best} of the {items} from {src} that {pred}, or {default} without one",
        "look for the {best} {item} of {src} which {pred1}, with {default} if none is found",
        "search {src} for the {item} that is the {best} of those that {pred}, else return {default}",
        "return whichever {item} in {src} is the {best} among those which {pred}, or {default} without any",
        "take all {items} in {src} which {pred} and choose the {best}, with {default} when there are none",
        "go over {src} and give back the {best} {item} that {pred1}, or {default} if there is no such {item}",
    ),
    held_out_nouns=("whichever {item} of {src} is the {best} that {pred1}, or {default} without one",),
    held_out_orders=("pick the {best} {item} from {src} which {pred1}, with {default} if there is none",),
)
WORD_LENGTHS = Say(
    nouns=tuple(f"{{red}} the lengths of {phrase}{{empty}}" for phrase in KEEP),
    orders=tuple(f"{{rdo}} the lengths of {phrase}{{empty}}" for phrase in KEEP)
    + (
        "take the length of each {item} in {src} that {pred1}, then {rdo} the lengths{empty}",
        "measure every {item} in {src} which {pred1} and {rdo} all lengths{empty}",
        "measure how long the {items} of {src} that {pred} are; {rdo} these lengths{empty}",
    ),
    held_out_nouns=tuple(f"{{red}} the lengths of {phrase}{{empty}}" for phrase in HELD_OUT_KEEP),
    held_out_orders=("measure the length of every {item} of {src} which {pred1} and {rdo} the lengths{empty}",),
)
WORD_DICT = Say(
    nouns=(
        "a dict that maps each {item} in {src} that {pred1} to {value}",
        "a dictionary from every {item} of {src} that {pred1} to {value}",
        "a dict with the {items} in {src} that {pred} as keys, and for each as value {value}",
        "the dict with whichever {items} of {src} {pred} as keys, each with {value}",
        "a dict whose keys are the {items} of {src} which {pred}, and under every key {value}",
        "the dict that has under each {item} of {src} that {pred1}, as its value, {value}",
        "a dict in which every {item} from {src} which {pred1} is a key, with {value}",
        "each {item} of {src} that {pred1}, as a key of a dict, with {value}",
        "those {items} in {src} that {pred}, as the keys of a dict, each one with {value}",
        "a dict from {item} to value, for all {items} of {src} which {pred}, the value being {value}",
    ),
    orders=(
        "map each {item} in {src} that {pred1} to {value}, in a dict",
        "build a dict: for every {item} of {src} that {pred1}, the {item} is the key and the value is {value}",
        "make a dictionary of the {items} in {src} that {pred}, each with {value}",
        "store {value} in a dict under every {item} in {src} which {pred1}",
        "store each {item} from {src} that {pred1} as a key in a dict, with {value}",
        "go over {src} and put under each {item} which {pred1}, in a dict, {value}",
        "use whichever {items} of {src} {pred} as keys of a dict, each with {value}",
        "for any {item} of {src} which {pred1}, put in a dict the {item} as key and as value {value}",
        "return a dict that has for each {item} of {src} which {pred1} {value}",
        "take the {items} from {src} that {pred}; in a dict, give each {value}",
    ),
    held_out_nouns=("the dict whose keys are whichever {items} of {src} {pred}, each key with {value}",),
    held_out_orders=("store in a dict, under each {item} of {src} which {pred1}, {value}",),
)
