"""Simple logic: who is the tallest of three, true and false, if-then rules, the odd one out."""

import random

from distill.tasks.build import comma, instruction, worked
from distill.tasks.lexicon import ADJECTIVES, CATEGORIES, NAMES, NOUNS
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

# comparative, superlative of the first in the chain, superlative of the last
RELATIONS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("stronger", "strongest", "weakest"),
    ("richer", "richest", "poorest"),
    ("heavier", "heaviest", "lightest"),
    ("louder", "loudest", "quietest"),
    ("happier", "happiest", "saddest"),
)


def _draw_order(rng: random.Random) -> Draw:
    x, y, z = rng.sample(NAMES, 3)
    relation, most, least = pick(rng, RELATIONS)
    facts = [f'"{x}" is {relation} than "{y}".', f'"{y}" is {relation} than "{z}".']
    if rng.random() < 0.5:
        facts.reverse()
    first = rng.random() < 0.5
    return worked(
        {"facts": " ".join(facts), "most": most if first else least},
        steps=[f"{most} to {least}: {x}, {y}, {z}"],
        result=x if first else z,
        key=f"{x} {y} {z}",
    )


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _draw_truth(rng: random.Random) -> Draw:
    """`"p" and not "q"` with two named facts."""
    p, q = rng.sample(NOUNS, 2)
    p_value, q_value = rng.random() < 0.5, rng.random() < 0.5
    negate_p, negate_q, both = rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.5
    left, right = p_value != negate_p, q_value != negate_q
    result = (left and right) if both else (left or right)
    operator = "and" if both else "or"
    p_text, q_text = ("not " if negate_p else ""), ("not " if negate_q else "")
    return worked(
        {
            "facts": f'"{p}" is {_truth(p_value)}, "{q}" is {_truth(q_value)}',
            "expr": f'{p_text}"{p}" {operator} {q_text}"{q}"',
        },
        steps=[
            f"{p_text}{p} = {_truth(left)}, {q_text}{q} = {_truth(right)}",
            f"{_truth(left)} {operator} {_truth(right)} = {_truth(result)}",
        ],
        result=_truth(result),
        key=f"{p} {q}",
    )


def _draw_rule(rng: random.Random) -> Draw:
    """If-then: the condition is met (yes) or another state is given (unknown)."""
    thing, other = rng.sample(NOUNS, 2)
    state, effect, different = rng.sample(ADJECTIVES, 3)
    met = rng.random() < 0.5
    fact = state if met else different
    steps = [f"{fact} = {state}, the rule applies"] if met else [f"{fact} is not {state}, the rule does not apply"]
    return worked(
        {
            "rule": f'If the "{thing}" is "{state}", then the "{other}" is "{effect}".',
            "fact": f'The "{thing}" is "{fact}".',
            "goal": f'the "{other}" is "{effect}"',
            "ask": f'Is the "{other}" "{effect}"?',
        },
        steps=steps,
        result="yes" if met else "unknown",
        key=f"{thing} {state} {other} {effect}",
    )


def _draw_odd(rng: random.Random) -> Draw:
    names = tuple(CATEGORIES)
    main, other = rng.sample(names, 2)
    items = [(word, main) for word in rng.sample(CATEGORIES[main], 3)]
    odd = pick(rng, CATEGORIES[other])
    items.insert(int(rng.random() * 4), (odd, other))
    words = [word for word, _ in items]
    return worked(
        {"items": comma(words)},
        steps=[comma([f"{word} {category}" for word, category in items])],
        result=odd,
        key=comma(sorted(words)),
    )


ORDER = instruction(
    "order_of_three",
    _draw_order,
    phrasings=(
        "{facts} Who is the {most}?",
        "{facts} [Which of them|Which one|Who of the three|Which person] is the {most}?",
        "[Given that|We know:|It is known:|Known facts:] {facts} [Who is the {most}?|Name the {most}.|Find the "
        "{most}.]",
        "[Find|Name|Give|Tell me] the {most}[ one| person| of the three|]. {facts}",
        "Who is the {most}[ of the three| of them| here|]? {facts}",
        "{facts} [Name|Find|Tell me|Give] the {most}[ person| one| of the three|].",
        "[Three friends are compared.|There are three people.|Compare three people.] {facts} Who is the {most}?",
        "[Read|Here are|Look at] the facts. {facts} [Which person is the {most}?|Who is the {most}?]",
        "{facts} [So|Then|Now] who is the {most}?",
        "[Could|Can|Would] you [please |][say|tell me|find out] who is the {most}? {facts}",
        "[Decide|Determine|Find out|Work out] who is the {most}: {facts}",
        "[From|With] these facts, [find|name|give] the {most}[ person|]: {facts}",
        "{facts} I want to know who is the {most}.",
        "{facts} [If this is true|If so|If that is right], who is the {most}?",
        "The {most} of three people is wanted. {facts} [Who is it?|Which one is it?|Name the person.]",
        "{facts} [Put them in order.|Order them.|Think.] Who [comes out as|is] the {most}?",
        "Somebody here is the {most}. {facts} [Who?|Who is it?|Which person?]",
        "{facts} The {most} is [who|which person|which of the three]?",
        "[My teacher says|Someone says|A friend says]: {facts} Who is the {most}?",
        "[Use|Take|Study] the facts to [find|name|determine] the {most}. {facts}",
        "{facts} [A prize goes to|We look for|I look for] the {most}. [Who gets it?|Who is it?|Which person is it?]",
    ),
    held_out=(
        "Please tell me which person is the {most}. {facts}",
        "Here are three people. {facts} Name the {most} one.",
        "{facts} Can you find out who is the {most} of the three?",
        "We look for the {most}. {facts} Who is it?",
        "Take these facts: {facts} Which of the three is the {most}?",
    ),
    frames=(
        "{facts} [So|Therefore] the {most} is {result}. {steps}",
        "{facts} In order, {steps}. The {most} of them is {result}.",
        "{facts}\n{steps}\n{most}: {result}",
    ),
)

TRUTH = instruction(
    "true_or_false",
    _draw_truth,
    phrasings=(
        "{facts}. [What is|Is] {expr}[ true or false|: true or false|]?",
        "[Given that|If|Suppose|Assume|Let us say] {facts}, [what is|is] {expr}[ true or false|, true or false|]?",
        "[Evaluate|Decide|Work out|Find] {expr}[, true or false,|] [if|when|given that] {facts}.",
        "[True or false|Is it true or false]: {expr}? [We know that|Known:|Facts:] {facts}.",
        "[Facts|Known|Given]: {facts}. [Statement|Question|Expression]: {expr}. [True or false?|Is it true?]",
        "[What is the value of|What do you get for] {expr}, [when|if|given] {facts}?",
        "{facts}. [Then|Now|So] {expr} is [true or false?|what, true or false?]",
        "[Is|Tell me if|Tell me whether|Say whether] {expr} [is |]true or false when {facts}.",
        "[Could|Can|Would] you [please |][evaluate|work out|find] {expr} when {facts}?",
        "[Determine|Find out|Check|Decide] whether {expr} is true or false. {facts}.",
        "{facts}. [Evaluate|Work out|Find the value of|Determine] {expr}.",
        "I know that {facts}. [What about|What is|What can I say about] {expr}?",
        "[Use|Take] the facts {facts} to [evaluate|decide|find] {expr}.",
        "[What|Which] truth value [does {expr} have|has {expr}] [if|when|given that] {facts}?",
        "Let {facts}. [Then what is|What is|Is] {expr}?",
        "Logic: {facts}. [Value of {expr}?|Find {expr}.|What is {expr}?]",
        "{expr}: true or false, [if|when|given that] {facts}?",
        "[In a world where|In a game where|On a day when] {facts}, [what is|is] {expr} [true or false|]?",
        "The [value|truth] of {expr} is [wanted|asked for|needed]. [We know that|Known:|The facts:] {facts}.",
        "[My notes say|The table says|Someone says]: {facts}. [Is {expr} true or false?|So what is {expr}?]",
        "[Give|Return|Write|Name] the truth value of {expr}[:| when| if] {facts}.",
    ),
    held_out=(
        "Please decide if {expr} is true or false. Known: {facts}.",
        "We know that {facts}. What is the value of {expr}?",
        "When {facts}, what truth value has {expr}?",
        "Take the facts {facts}. Is {expr} true or false?",
        "Can you tell me whether {expr} is true, given that {facts}?",
    ),
    frames=(
        "{facts}. Then {expr} is {result}:\n{steps}",
        "Suppose {facts}. The value of {expr} is found step by step.\n{steps}",
        "Facts: {facts}\n{steps}\n{expr} is {result}.",
    ),
)

RULE = instruction(
    "if_then",
    _draw_rule,
    phrasings=(
        "{rule} {fact} {ask}[ Answer yes or unknown.| Yes or unknown?|]",
        "[Rule|The rule]: {rule} [Fact|The fact]: {fact} [Question: |]{ask}",
        "[Given that|We know:|It is known:|Suppose this:] {rule} {fact} [Does it follow that {goal}?|Do we "
        "know that {goal}?]",
        "{fact} {rule} {ask}[ Yes or unknown?|]",
        "{ask} [We know:|Known:|Here is what we know:] {rule} {fact}",
        "{rule} [Now|Today|It turns out:] {fact} [Can we say that {goal}?|Does it follow that {goal}?]",
        "[Decide|Find out|Check|Determine] [if|whether] {goal}. {rule} {fact}",
        "[There is|Here is] a rule. {rule} [You see:|Somebody sees:|We see:] {fact} {ask}",
        "[My friend says|Someone says]: {rule} [I see|I find]: {fact} {ask}",
        "[Could|Can|Would] you [please |][say|tell me] whether {goal}? {rule} {fact}",
        "{rule} {fact} [What about this: |So: |Then: ]{ask}",
        "[Is it certain|Is it sure|Do we know] that {goal}? [Rule: |]{rule} [Fact: |]{fact}",
        "[Use|Apply|Take] the rule[ and answer|]. {rule} {fact} {ask}",
        "[Does|Can] it follow that {goal}? [Answer yes or unknown.|] {rule} {fact}",
        "[Logic question|A question of logic]. {rule} {fact} {ask}",
        "{fact} [Someone adds|The rule says|It is a rule]: {rule} [Do we know that {goal}?|{ask}]",
        "{rule} [That is the rule.|Remember the rule.] {fact} {ask}",
        "[Think|Reason] step by step. {rule} {fact} {ask}",
        "[Yes or unknown|Answer yes or unknown]: {ask} {rule} {fact}",
        "[Read this|Look at this|Consider this]: {rule} {fact} [Can you say that {goal}?|{ask}]",
        "I want to know [if|whether] {goal}. [I know this:|Known:] {rule} {fact}",
    ),
    held_out=(
        "Please tell me if {goal}. Rule: {rule} Fact: {fact}",
        "Here is what I know: {fact} {rule} Is it sure that {goal}?",
        "{rule} We see: {fact} Do we know that {goal}?",
        "Yes or unknown? {fact} {rule} {ask}",
        "Apply the rule and find out whether {goal}. {rule} {fact}",
    ),
    frames=(
        "{rule} {fact} [Then|Now]: {steps}. {ask} {result}",
        "{fact} {rule} {ask} {result}, because {steps}.",
        "Rule: {rule}\nFact: {fact}\n{steps}\n{ask} {result}",
    ),
)

ODD = instruction(
    "odd_one_out",
    _draw_odd,
    phrasings=(
        'Which [word|item|one] [does not|doesn\'t] [belong|fit][ with the others| here| in the list|]: "{items}"?',
        '[Find|Name|Give|Pick|Show me] the odd one out [in|of|from|among] "{items}".',
        'What is the odd one out[ in| of| among|:] "{items}"?',
        '[Given|Take] the words "{items}"[,| and] [find|name|pick] the [odd one out|one that does not '
        "belong|stranger].",
        'The words are "{items}". [Which one does not fit?|Which is the odd one out?|Which one is different?]',
        '"{items}": [which does not belong?|odd one out?|which one is different from the others?|name the odd one.]',
        'Three of the words "{items}" [belong together|are of the same kind|are alike]. Which one [does not|is not]?',
        'I have [a list|four words]: "{items}". [One does not fit.|One is different.|One is of another kind.] '
        "[Which one?|Which "
        "is it?]",
        '[Could|Can|Would] you [please |][find|name|pick] the odd one out [in|of] "{items}"[ for me|]?',
        'Which [word|item|one] [of|in|among] "{items}" is [of another kind|different|not like the others|the '
        "stranger]?",
        'One of "{items}" is not like the others. [Which?|Which one is it?|Name it.|Find it.]',
        '[Look at|Read|Study] "{items}" and [name|find|pick|give] the one that [does not belong|does not '
        "fit|is different].",
        '[Pick|Choose|Select] the [word|item] that does not [fit|belong] [in|with]: "{items}".',
        'Three are [of one kind|alike|the same kind], one is not: "{items}". [Which one?|Name the one that is not.]',
        'If you [group|sort] "{items}" by kind, which [word|one] [is alone|stands alone|is left alone]?',
        '[Remove|Cross out|Delete] the [word|item|one] that does not [fit|belong]: "{items}". [Which one is it?|]',
        'Who or what is the stranger among "{items}"?',
        '[Tell|Show] me which [word|one] of "{items}" [does not belong|does not fit|is the odd one].',
        'Four words, three of a kind: "{items}". [Which is the other one?|Which is the odd one?|Name the odd one.]',
        'Odd one out of "{items}"?',
        'Which of "{items}" is in the wrong [group|list|place]?',
    ),
    held_out=(
        'Please name the word that is different: "{items}".',
        'Which one of the four words "{items}" does not fit with the others?',
        'Take "{items}". Three belong together; which one is of another kind?',
        'Can you tell me the odd one in the list "{items}"?',
        'Look at the words "{items}" and find the stranger.',
    ),
    frames=(
        "Among {items}, the odd one is {result}: {steps}",
        "{steps}. So {result} does not belong with the others.",
        "Words: {items}\n{steps}\nThe one of another kind: {result}",
    ),
)

FAMILIES = (ORDER, TRUTH, RULE, ODD)
