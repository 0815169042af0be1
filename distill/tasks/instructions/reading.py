"""Reading: JSON from a sentence, questions about a paragraph, sentiment and topic of generated sentences."""
# ruff: noqa: SIM905  (a list of words reads best as running text)

import json
import random

from distill.tasks.build import instruction, worked
from distill.tasks.lexicon import CITIES, COLORS, NAMES
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

RECORD_TEXTS = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, aged {age}, lives in {city}.",
    "My friend {name} from {city} is {age} years old.",
    "In {city} lives {name}, who is {age} years old.",
    "{name} moved to {city} last year and is now {age}.",
    "At the age of {age}, {name} still lives in {city}.",
    "This is {name}. The home town is {city} and the age is {age}.",
    "Meet {name} from {city}, {age} years old.",
    "There is a person of {age} years in {city}, called {name}.",
    "{name} turned {age} today and had a party in {city}.",
    "Born {age} years ago, {name} works in {city}.",
    "From {city} came a letter by {name}, who is {age} years old.",
)
OWNED = (
    "bike lamp coat hat boat car book cup ball bag box shirt chair kite clock scarf plate pen ring drum tent sofa vase "
    "radio phone basket candle piano guitar jacket"
).split()
OWNS = ("has", "owns", "likes", "sells", "wants")
PLACES = (
    "kitchen garden school office park shop museum station library harbor forest market hotel church cinema"
).split()

THINGS_JUDGED = (
    "film book meal hotel song game trip concert lesson car phone coffee party room garden play dinner show "
    "beach train "
    "service story cake movie museum restaurant soup holiday teacher garden speech picture shop flight chair camera"
).split()
POSITIVE = (
    "wonderful great lovely perfect beautiful excellent amazing brilliant delightful superb charming fantastic "
    "pleasant "
    "fabulous splendid terrific marvelous enjoyable impressive outstanding"
).split()
NEGATIVE = (
    "terrible awful horrible boring dreadful ugly disappointing poor nasty dirty broken annoying useless miserable "
    "painful unpleasant disgusting lousy dull rude"
).split()
LIKED = "loved enjoyed liked adored admired praised".split()
DISLIKED = "hated disliked regretted detested left despised".split()
SENTIMENT_TEXTS = (
    "The {thing} was {adj} and {name} {verb} it.",
    "{name} {verb} the {thing}, it was {adj}.",
    "What a {adj} {thing}, {name} {verb} it.",
    "It was a {adj} {thing} and everybody {verb} it.",
    "We {verb} this {adj} {thing}.",
    "{name} said that the {thing} in {city} was {adj}.",
    "My visit to {city} was {adj}, and I {verb} the {thing}.",
    "The {adj} {thing} in {city} is what {name} {verb} most.",
)

TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sports": (
        tuple("team player goal match coach stadium race referee champion score tournament league".split()),
        tuple("won lost trained scored kicked ran".split()),
    ),
    "food": (
        tuple("soup bread cheese recipe chef oven salad pasta dessert spice kitchen pepper".split()),
        tuple("cooked baked tasted fried served ate".split()),
    ),
    "weather": (
        tuple("rain snow storm cloud wind sunshine fog thunder frost temperature hail breeze".split()),
        tuple("froze melted poured cleared cooled warmed".split()),
    ),
    "music": (
        tuple("song piano guitar band concert drum melody violin choir singer orchestra album".split()),
        tuple("sang played rehearsed composed hummed recorded".split()),
    ),
    "travel": (
        tuple("airport suitcase passport hotel flight ticket tourist journey map luggage cruise border".split()),
        tuple("packed boarded landed departed arrived booked".split()),
    ),
    "school": (
        tuple("teacher pupil homework lesson exam classroom grade textbook chalk blackboard essay quiz".split()),
        tuple("studied learned taught read wrote solved".split()),
    ),
}
TOPIC_TEXTS = (
    "The {a} and the {b} were new when {name} {verb}.",
    "{name} {verb} and talked about the {a} and the {b}.",
    "In {city} the {a} came first, then the {b}, and {name} {verb}.",
    "Because of the {a}, {name} {verb} near the {b}.",
    "{name} {verb} again, as the {a} in {city} needed a {b}.",
    "Everybody in {city} spoke of the {a} and the {b}.",
    "It was all about the {a}, said {name}, and the {b}.",
    "With a {a} and a {b}, {name} {verb} all day.",
)


def _draw_record(rng: random.Random) -> Draw:
    record = {"name": pick(rng, NAMES), "age": 10 + int(rng.random() * 80), "city": pick(rng, CITIES)}
    text = pick(rng, RECORD_TEXTS).format_map(record)
    key = f"{record['name']} {record['age']} {record['city']}"
    return worked({"text": text}, result=json.dumps(record), key=key)


def _draw_question(rng: random.Random) -> Draw:
    """Three people, each with a coloured thing or a place; one question about one of them.

    The steps pair what is asked for with what it is asked of, in the order of the text, then repeat the pair asked
    about.
    """
    names, things, places = rng.sample(NAMES, 3), rng.sample(OWNED, 3), rng.sample(PLACES, 3)
    colors, own = rng.sample(COLORS, 3), pick(rng, OWNS)
    with_places = rng.random() < 0.5
    sentences = [
        f"{names[i]} {own} a {things[i]} in the {places[i]}."
        if with_places
        else f"{names[i]} {own} {_article(colors[i])} {things[i]}."
        for i in range(3)
    ]
    i = int(rng.random() * 3)
    bare = own.removesuffix("s") if own != "has" else "have"
    kind = int(rng.random() * 3)
    if kind == 0:
        question, of, asked = f"Who {own} a {things[i]}?", things, names
    elif kind == 1:
        question, of, asked = f"What does {names[i]} {bare}?", names, things
    elif with_places:
        question, of, asked = f"Where is the {things[i]}?", things, places
    else:
        question, of, asked = f"What color is the {things[i]}?", things, colors
    return worked(
        {"text": " ".join(sentences), "question": question},
        steps=[", ".join(f"{of[j]} {asked[j]}" for j in range(3)), f"{of[i]} {asked[i]}"],
        result=asked[i],
        key=" ".join(sentences),
    )


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _draw_sentiment(rng: random.Random) -> Draw:
    good = rng.random() < 0.5
    slots = {
        "thing": pick(rng, THINGS_JUDGED),
        "adj": pick(rng, POSITIVE if good else NEGATIVE),
        "verb": pick(rng, LIKED if good else DISLIKED),
        "name": pick(rng, NAMES),
        "city": pick(rng, CITIES),
    }
    text = pick(rng, SENTIMENT_TEXTS).format_map(slots)
    label = "positive" if good else "negative"
    cue = next(word for word in (slots["adj"], slots["verb"]) if word in text)
    return worked({"text": text}, steps=[f"{cue} is {label}"], result=label, key=text)


def _draw_topic(rng: random.Random) -> Draw:
    topic = pick(rng, tuple(TOPICS))
    nouns, verbs = TOPICS[topic]
    a, b = rng.sample(nouns, 2)
    text = pick(rng, TOPIC_TEXTS).format(a=a, b=b, verb=pick(rng, verbs), name=pick(rng, NAMES), city=pick(rng, CITIES))
    options = list(TOPICS)
    rng.shuffle(options)
    return worked(
        {"text": text, "topics": ", ".join(options)},
        steps=[f"{a} and {b} belong to {topic}"],
        result=topic,
        key=text,
    )


EXTRACT_JSON = instruction(
    "extract_json",
    _draw_record,
    phrasings=(
        '[Extract|Get|Pull] [name, age and city|the name, age and city] [from|out of] "{text}" as JSON.',
        '[Convert|Turn|Change] [the sentence|the text|] "{text}" [to|into] [JSON|a JSON object] with name, age '
        "and city.",
        '[Write|Give|Return] a JSON object with [the keys|] name, age and city [for|from|about]: "{text}"',
        'What is the JSON [record|object] (name, age, city) [of|for|in] "{text}"?',
        '[Given|Take] the [text|sentence] "{text}"[,| and] [extract|return|write] name, age and city as JSON.',
        'The [text|sentence] is "{text}". [Write|Give] name, age and city as [JSON|a JSON object].',
        '"{text}" [As JSON, please: name, age, city.|Give name, age and city as JSON.|JSON with name, age and city?]',
        'I have [a text|a sentence]: "{text}" [Make|Build] a JSON object with name, age and city[ from it|].',
        '[Could|Can|Would] you [please |]extract name, age and city as JSON from "{text}"?',
        '[Find|Read off] the name, [the |]age and [the |]city in "{text}" and [write|return|give] them as JSON.',
        '[Fill|Make|Build] a JSON [record|object] with name, age and city [from|using|out of] "{text}".',
        '[Who is it, how old and where?|Who, how old, where?] [Answer|Write] [as|in|with] JSON: "{text}"',
        '[Parse|Read] "{text}" [into|and make] a JSON object [with|of] name, age and city.',
        'My program needs JSON with name, age and city. [The text is|Text:|The sentence is] "{text}"',
        '[Put|Store] the person [in|from|of] "{text}" [in|into] a JSON object (name, age, city).',
        '[Show|Tell] me the name, age and city [in|of] "{text}", as [JSON|a JSON object].',
        'Name, age and city as JSON[, please|]: "{text}"',
        '[Represent|Express|Describe] the person in "{text}" as [JSON|a JSON object] with name, age and city.',
        'Which name, age and city [are|stand] in "{text}"? [Answer|Reply] [in|with|as] JSON.',
        '[Data|Information] extraction: "{text}" [Output|Return|Write] JSON with name, age and city.',
        'From "{text}" [make|produce|create] JSON with the keys name, age and city.',
    ),
    held_out=(
        'Please read "{text}" and return the name, age and city as a JSON object.',
        'What are the name, age and city in "{text}"? Answer with JSON.',
        'Turn the person in "{text}" into a JSON record with name, age and city.',
        'Can you build JSON with the keys name, age and city from the sentence "{text}"?',
        'I have the text "{text}". Put name, age and city into JSON.',
    ),
    frames=(
        "{text} As a JSON object: {result}",
        "{text}\n{result}",
        "The record {result} says: {text}",
        "Text: {text}\nJSON: {result}",
    ),
)

READ_FACT = instruction(
    "question_about_text",
    _draw_question,
    phrasings=(
        '[Read|Please read] the text: "{text}" [Question|Now answer]: "{question}"',
        '"{text}" [Answer the question|Question]: "{question}"',
        '[Answer|Please answer] the question "{question}" [from|using|with] [the|this] text: "{text}"',
        '"{question}" [Text|The text|Here is the text]: "{text}"',
        '[Given|Take] the text "{text}"[,| and] [answer|answer the question]: "{question}"',
        'The text [says|is]: "{text}" [What is the answer to|Answer|Tell me]: "{question}"',
        '[Use|Look at|Study] [the|this] [text|paragraph|story] to answer "{question}". [Text: |]"{text}"',
        'I read [this|the following]: "{text}" [Now I ask|My question is|I want to know]: "{question}"',
        '[Could|Can|Would] you [please |]answer "{question}" [from|with] the text "{text}"?',
        '[Context|Paragraph|Story]: "{text}" [Question: |]"{question}"',
        '[Here is|This is] a [short |][text|story|paragraph]: "{text}" [What is the answer to|Answer] "{question}"',
        '[According to|From|Based on] the [text|paragraph|story] "{text}", "{question}"',
        '[Question|My question]: "{question}" [Text|Context|Story|Paragraph]: "{text}"',
        'Somebody [tells|told] me: "{text}" [So|Then|Now]: "{question}"',
        'What is the answer to "{question}" [according to|in|if you read|from] "{text}"?',
        '[Find|Look for|Search] the answer to "{question}" in [the text|the story|the paragraph|]: "{text}"',
        'A [child|student|friend] reads "{text}" and is asked "{question}" What is the answer?',
        'Test of reading. "{text}" "{question}"',
        '[Know|Knowing|If you know] that "{text}", [answer|what is the answer to] "{question}"',
        '[Reply|Answer] with one word. "{text}" "{question}"',
        '"{question}" [Look it up in|Find it in|The answer is in] "{text}"',
        '[Search|Scan|Read] "{text}" for the answer to "{question}"',
    ),
    held_out=(
        'Please find in the text "{text}" the answer to "{question}"',
        'My question is "{question}" Read this paragraph: "{text}"',
        'Here is a story: "{text}" Can you tell me: "{question}"',
        '"{question}" Answer from this text: "{text}"',
        'Based on "{text}", what is the answer to the question "{question}"',
    ),
    frames=(
        "{text} {question} {result}, because: {steps}.",
        "{text}\n{question} In pairs: {steps}. So it is {result}.",
        "Text: {text}\n{steps}\n{question} {result}",
    ),
)

SENTIMENT = instruction(
    "sentiment",
    _draw_sentiment,
    phrasings=(
        'Is the [sentiment|mood|tone|feeling] of "{text}" positive or negative?',
        '[Classify|Label] the sentiment of "{text}"[ as positive or negative|].',
        '[What is|What\'s|Tell me|Give] the sentiment of "{text}"[ (positive or negative)|]?',
        '[Decide|Determine|Say|Find out] [whether|if] "{text}" is positive or negative.',
        '[Given|Take] the [review|sentence|text] "{text}"[,| and] [say|decide] if it is positive or negative.',
        'The [review|text|sentence] is "{text}". [Positive or negative?|Is it positive or negative?|What is '
        "the sentiment?]",
        '"{text}": [positive or negative?|good or bad feeling (positive or negative)?|sentiment?|classify the '
        "sentiment.]",
        'I have a [review|comment|text]: "{text}". [Is the writer happy (positive) or not (negative)?|Is it '
        "positive or "
        "negative?]",
        '[Could|Can|Would] you [please |][classify|label] the sentiment of "{text}"?',
        '[Positive or negative|Sentiment]: "{text}"?',
        'Does "{text}" [sound|feel|read] positive or negative?',
        '[Read|Look at] the [review|comment|text] "{text}" and [give|name|write] its sentiment.',
        'Would you call "{text}" positive or negative?',
        'Which [label|sentiment], positive or negative, [fits|belongs to|describes] "{text}"?',
        '[Somebody|A customer|A guest] [wrote|says]: "{text}" [Is that|Is this review] positive or negative?',
        '[Rate|Judge] the [review|comment|text|sentence] "{text}" as positive or negative.',
        'A [customer|guest] left the [comment|review] "{text}". [What is its sentiment?|Positive or negative?]',
        '[Put|Sort] the [review|comment] "{text}" [under|into] positive or negative.',
        'Sentiment analysis[, please|]: "{text}"',
        'How does the writer of "{text}" feel, positive or negative?',
        'If reviews are positive or negative, [which|what] is "{text}"?',
    ),
    held_out=(
        'Please label the review "{text}" as positive or negative.',
        'What sentiment does the text "{text}" have, positive or negative?',
        'A guest says: "{text}" Does it sound positive or negative?',
        'Can you decide whether the comment "{text}" is positive or negative?',
        'Read "{text}" and classify its sentiment.',
    ),
    frames=(
        "{text} This is a {result} remark: {steps}.",
        "{text} [The feeling is|One hears that it is] {result}, because {steps}.",
        "Review: {text}\n{steps}\nSentiment: {result}",
    ),
)

TOPIC = instruction(
    "topic",
    _draw_topic,
    phrasings=(
        'Which [topic|subject] does "{text}" belong to: {topics}?',
        '[Classify|Label] the topic of "{text}" as one of {topics}.',
        '[What is|What\'s|Tell me|Give] the topic of "{text}"? [Choose from|The topics are|Topics:] {topics}.',
        '[Decide|Determine|Say|Find out] which of {topics} [is the topic of|fits] "{text}".',
        '[Given|Take] the sentence "{text}"[,| and] [choose|pick|name] its topic from {topics}.',
        'The [sentence|text] is "{text}". [Which topic is it|What is it about|What is its topic]: {topics}?',
        '"{text}": [which topic|what is the topic], [out of|among] {topics}?',
        'I have a [text|sentence]: "{text}". Is [it about|the topic] {topics}?',
        '[Could|Can|Would] you [please |][find|name|choose] the topic of "{text}" among {topics}?',
        'Topics: {topics}. [Text|Sentence]: "{text}". [Which topic?|Classify it.|Which one fits?]',
        'What is "{text}" about? [Choose|Pick] one[ of|:] {topics}.',
        '[Read|Look at] the [sentence|text] "{text}" and [choose|pick|name] one topic[ of|:| out of] {topics}.',
        '[Choose|Pick|Select] the [right|best] topic for "{text}" [from|out of|among]: {topics}.',
        '[Put|Sort] the sentence "{text}" [under|into] one of the topics {topics}.',
        'A newspaper has the [pages|sections] {topics}. [Where|In which one] does "{text}" [belong|go]?',
        '[From|Out of] the topics {topics}, which [one |][fits|describes|belongs to] "{text}"?',
        'Which of the [labels|topics] {topics} [fits|describes|belongs to] "{text}"?',
        '[Somebody|A friend] [wrote|says]: "{text}" [Is that|What is the topic,] {topics}?',
        'With the labels {topics}, [classify|label|sort] "{text}".',
        'Topic [of|for] "{text}"? ({topics})',
        'If the topics are {topics}, [which|what] is the topic of "{text}"?',
    ),
    held_out=(
        'Please choose the topic that fits the text "{text}": {topics}.',
        'What is the sentence "{text}" about, out of {topics}?',
        'The topics are {topics}. Which one describes "{text}"?',
        'Can you label "{text}" with one of {topics}?',
        'Read "{text}" and say which of the topics {topics} it belongs to.',
    ),
    frames=(
        "{text} This is about {result}, because {steps}.",
        "{text} {steps}, so the topic is {result}.",
        "Text: {text}\n{steps}\nTopic: {result}",
    ),
)

FAMILIES = (EXTRACT_JSON, READ_FACT, SENTIMENT, TOPIC)
