"""Dates, weekdays and units, with the small calculation behind each."""

import random

from distill.tasks.build import instruction, worked
from distill.tasks.phrasing import pick
from distill.tasks.types import Draw

MONTHS = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30),
    ("July", 31), ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31),
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _number(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _draw_date_after(rng: random.Random) -> Draw:
    """At most 30 days later, never out of a February, so that leap years do not matter."""
    month = pick(rng, (0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11))
    day, days = _number(rng, 1, 28), _number(rng, 2, 30)
    name, length = MONTHS[month]
    total = day + days
    steps = [f"{name} has {length} days", f"{day} + {days} = {total}"]
    result = f"{name} {total}"
    if total > length:
        steps.append(f"{total} - {length} = {total - length}")
        result = f"{MONTHS[(month + 1) % 12][0]} {total - length}"
    return worked(
        {"date": f"{name} {day}", "days": str(days)}, steps=steps, result=result, key=f"{name} {day} + {days}"
    )


def _draw_weekday_after(rng: random.Random) -> Draw:
    start, days = _number(rng, 0, 6), _number(rng, 2, 320)
    rest = days % 7
    walk = [WEEKDAYS[(start + i) % 7] for i in range(rest + 1)]
    return worked(
        {"weekday": WEEKDAYS[start], "days": str(days)},
        steps=[f"{days} = {days // 7} x 7 + {rest}", ", ".join(walk)],
        result=walk[-1],
        key=f"{WEEKDAYS[start]} + {days}",
    )


def _draw_iso_date(rng: random.Random) -> Draw:
    month, day, year = _number(rng, 1, 12), _number(rng, 1, 28), _number(rng, 1900, 2039)
    name = MONTHS[month - 1][0]
    return worked(
        {"date": f"{name} {day}, {year}"},
        steps=[f"{name} = {month:02}, day = {day:02}"],
        result=f"{year}-{month:02}-{day:02}",
        key=f"{year}-{month:02}-{day:02}",
    )


def _draw_meters(rng: random.Random) -> Draw:
    big, small = _number(rng, 2, 60), _number(rng, 1, 99)
    return worked(
        {"m": str(big), "cm": str(small)},
        steps=[f"{big} x 100 = {big * 100}", f"{big * 100} + {small} = {big * 100 + small}"],
        result=f"{big * 100 + small} cm",
        key=f"{big} m {small} cm",
    )


def _draw_kilograms(rng: random.Random) -> Draw:
    big, small = _number(rng, 2, 60), _number(rng, 1, 999)
    return worked(
        {"kg": str(big), "g": str(small)},
        steps=[f"{big} x 1000 = {big * 1000}", f"{big * 1000} + {small} = {big * 1000 + small}"],
        result=f"{big * 1000 + small} g",
        key=f"{big} kg {small} g",
    )


def _draw_hours(rng: random.Random) -> Draw:
    big, small = _number(rng, 2, 48), _number(rng, 1, 59)
    return worked(
        {"h": str(big), "min": str(small)},
        steps=[f"{big} x 60 = {big * 60}", f"{big * 60} + {small} = {big * 60 + small}"],
        result=f"{big * 60 + small} minutes",
        key=f"{big} h {small} min",
    )


DATE_AFTER = instruction(
    "date_after",
    _draw_date_after,
    phrasings=(
        '[What|Which] date is {days} days after "{date}"?',
        '[Add|Please add] {days} days to "{date}". [What is the date?|What date do you get?|]',
        '[Find|Give|Tell me|Calculate|Work out] the date {days} days [after|later than|from] "{date}".',
        'Today is "{date}". What [is the date|date is it|date will it be] [in {days} days|{days} days '
        "later|after {days} days]?",
        'If today is "{date}", [what|which] [date|day of the month] comes {days} days [later|from now]?',
        '[Start|Begin] [at|on|with] "{date}" and go [forward|on|ahead] {days} days. What is the date?',
        '"{date}" plus {days} days: [what date?|which date is that?|find the date.]',
        'A [trip|holiday|course|visit] starts on "{date}" and [ends|is over] {days} days later. On which date '
        "does it end?",
        '[Given|Take] the date "{date}"[,| and] [count|go] {days} days [forward|ahead]. What date [is it|do '
        "you reach]?",
        '{days} days after "{date}", what is the date?',
        '[Could|Can|Would] you [please |]tell me [which|what] date is {days} days after "{date}"?',
        'A [letter|parcel|package] was sent on "{date}" and takes {days} days. On [what|which] date does it arrive?',
        'I [start|begin] on "{date}" and need {days} days. On [what|which] date [am I done|is it over]?',
        'On "{date}" someone says: in {days} days. Which date [is meant|is that]?',
        '[The date is|The calendar shows] "{date}". [What is it|Which date is it|What will it be] {days} days '
        "[later|from now]?",
        '[Count|Move] {days} days [on|forward|ahead] from "{date}" and [give|name|write] the date.',
        'Date: "{date}". Days to add: {days}. [New date?|What is the new date?|Give the new date.]',
        'What will the calendar show {days} days after "{date}"?',
        'After "{date}", {days} days [go by|pass]. [What|Which] date is it then?',
        '[Move|Shift] the date "{date}" [by {days} days|{days} days forward|{days} days ahead].',
        'Which [date|day of the month] do you [reach|get] when you [wait|count] {days} days from "{date}"?',
    ),
    held_out=(
        'Please give the date that comes {days} days after "{date}".',
        'What date do you get when you add {days} days to "{date}"?',
        'Today the calendar shows "{date}". Which date is it in {days} days?',
        'Can you find the new date if I go {days} days ahead from "{date}"?',
        'A visit starts on "{date}". It ends {days} days later. What is the date then?',
    ),
    frames=(
        "{days} days after {date} it is {result}.\n{steps}",
        "[Counting|We count] {days} days from {date}.\n{steps}\nThe date is {result}.",
        "A trip that starts on {date} and takes {days} days ends on {result}.\n{steps}",
    ),
)

WEEKDAY_AFTER = instruction(
    "weekday_after",
    _draw_weekday_after,
    phrasings=(
        '[What|Which] [weekday|day of the week] is {days} days after "{weekday}"?',
        'Today is "{weekday}". [What|Which] [weekday|day of the week] is it [in {days} days|{days} days '
        "later|after {days} "
        "days]?",
        'If today is "{weekday}", [what|which] [weekday|day of the week] comes {days} days [later|from now]?',
        '[Find|Give|Tell me|Calculate|Work out] the [weekday|day of the week] {days} days [after|from] "{weekday}".',
        '[Add|Please add] {days} days to "{weekday}". [Which weekday is it?|What weekday do you get?]',
        '[Start|Begin] [at|on|with] "{weekday}" and go [forward|on|ahead] {days} days. What [weekday|day of '
        "the week] is it?",
        '"{weekday}" plus {days} days: [what weekday?|which weekday is that?|find the weekday.]',
        'A [trip|holiday|course] starts on a "{weekday}" and ends {days} days later. On which weekday does it end?',
        '[Given|Take] a "{weekday}"[,| and] [count|go] {days} days [forward|ahead]. What weekday [is it|do you reach]?',
        '{days} days after a "{weekday}", what [weekday|day of the week] is it?',
        '[Could|Can|Would] you [please |]tell me [which|what] weekday is {days} days after "{weekday}"?',
        'A [letter|parcel|package] was sent on a "{weekday}" and takes {days} days. On [what|which] weekday '
        "does it arrive?",
        'I [start|begin] on a "{weekday}" and need {days} days. On [what|which] weekday [am I done|is it over]?',
        'On a "{weekday}" someone says: in {days} days. Which weekday [is meant|is that]?',
        'It is "{weekday}". [What|Which] [weekday|day of the week] will it be {days} days [later|from now]?',
        '[Count|Move] {days} days [on|forward|ahead] from "{weekday}" and [give|name|write] the weekday.',
        'Weekday: "{weekday}". Days to add: {days}. [New weekday?|What is the new weekday?|Give the new weekday.]',
        'What [weekday|day of the week] will it be {days} days after a "{weekday}"?',
        'After a "{weekday}", {days} days [go by|pass]. [What|Which] [weekday|day of the week] is it then?',
        'Monday to Sunday: which one is {days} days after "{weekday}"?',
        'Which [weekday|day of the week] do you [reach|get] when you [wait|count] {days} days from "{weekday}"?',
    ),
    held_out=(
        'Please give the weekday that comes {days} days after "{weekday}".',
        'What weekday do you get when you add {days} days to a "{weekday}"?',
        'It is "{weekday}" today. Which day of the week is it in {days} days?',
        'Can you find the weekday if I go {days} days ahead from "{weekday}"?',
        'A course starts on a "{weekday}". It ends {days} days later. What weekday is it then?',
    ),
    frames=(
        "{days} days after a {weekday} it is {result}.\n{steps}",
        "[Seven days make a week.|A week has seven days.] From {weekday}, {days} days on:\n{steps}\nIt is {result}.",
        "If today is {weekday}, then in {days} days it is {result}, because\n{steps}",
    ),
)

ISO_DATE = instruction(
    "iso_date",
    _draw_iso_date,
    phrasings=(
        '[Write|Give|Put|Print] the date "{date}" [as|in the form|in the format] YYYY-MM-DD.',
        '[Convert|Change|Turn|Rewrite] "{date}" [to|into|as] [a numeric date|YYYY-MM-DD|ISO format|an ISO date].',
        'What is "{date}" [in ISO format|as YYYY-MM-DD|as an ISO date|in the form YYYY-MM-DD|in numbers]?',
        'How do you write "{date}" [in ISO format|as year-month-day|as YYYY-MM-DD|with numbers only]?',
        '[Given|Take] the date "{date}"[,| and] [write|give|return] it as [YYYY-MM-DD|year-month-day|an ISO date].',
        'The date is "{date}". [Write it as YYYY-MM-DD.|What is the ISO form?|Give it as year-month-day.]',
        '"{date}": [ISO format, please|as year-month-day|write this date with numbers|as YYYY-MM-DD, please].',
        'I have the date "{date}". What [is it|does it look like] [in ISO format|as YYYY-MM-DD|in numbers]?',
        '[Could|Can|Would] you [please |][format|write|convert] "{date}" [as|to] [YYYY-MM-DD|ISO format][ for me|]?',
        '[Format|Reformat|Express] the date "{date}" [as|in] [numbers|ISO format|YYYY-MM-DD|year-month-day].',
        'A form asks for the date "{date}" [as|in the form] [year-month-day|YYYY-MM-DD]. What do [I|you] '
        "[write|fill in]?",
        'Use [numbers only|two digits for month and day] to write "{date}" [as year-month-day|as YYYY-MM-DD].',
        'Replace the month name in "{date}" [by|with] its number and write [the date as |]year, month and day.',
        'ISO [form|format|date] of "{date}"?',
        '[Find|Return|Produce|Show me] the ISO [form|date] [of|for] "{date}".',
        'Year first, then month, then day: [write|rewrite|put] "{date}" [that way|like that][ with numbers|].',
        'My birthday is "{date}". [Write|Give] it [in ISO format|as YYYY-MM-DD|as year-month-day].',
        'A file is named [by|after] its date. Which ISO date [is|belongs to] "{date}"?',
        'If dates are written [year-month-day|YYYY-MM-DD], [how|what] is "{date}"[ written|]?',
        '[Tell|Show] me [how|what] "{date}" looks like in [the form YYYY-MM-DD|ISO format|numbers].',
        'Which numeric date [is|stands for|belongs to] "{date}"?',
    ),
    held_out=(
        'Please write "{date}" in the format year-month-day.',
        'What does "{date}" look like as an ISO date?',
        'Take "{date}" and change it to a numeric date, year first.',
        'Can you put the date "{date}" into the form YYYY-MM-DD?',
        'How is the date "{date}" written with numbers?',
    ),
    frames=(
        "The date {date} is written {result}: {steps}",
        "{date}\n{steps}\n{result}",
        "In the form year-month-day, {date} [becomes|reads] {result}, because {steps}.",
    ),
)


def _unit_frames(left: str, right: str) -> tuple[str, ...]:
    return (
        f"{left} is {{result}}:\n{{steps}}",
        f"[Converting|We convert] {left} to {right}.\n{{steps}}\nThat is {{result}}.",
        f"{left}\n{{steps}}\n{{result}}",
    )


METERS = instruction(
    "meters_to_centimeters",
    _draw_meters,
    phrasings=(
        "[Convert|Change|Turn|Please convert] {m} m {cm} cm [to|into] [cm|centimeters].",
        "How many [cm|centimeters] are {m} m [and|] {cm} cm?",
        "[Write|Give|Express] {m} meters and {cm} centimeters in [cm|centimeters][ only|].",
        "What is {m} m {cm} cm in [centimeters|cm]?",
        "[Given|Take] a length of {m} m {cm} cm[,| and] [convert|change] it to [cm|centimeters].",
        "A [rope|road|wall|table|fence] is {m} m {cm} cm [long|in length]. How [many centimeters|many cm|long "
        "in cm] is that?",
        "[The|Its] length is {m} m {cm} cm. [How many centimeters is that?|Give it in cm.|What is it in centimeters?]",
        "{m} m {cm} cm: [how many cm?|in centimeters, please|convert to cm].",
        "I have {m} meters and {cm} centimeters of [rope|cloth|string]. How many centimeters [is that|do I have]?",
        "[Could|Can|Would] you [please |]convert {m} m {cm} cm [to|into] [cm|centimeters][ for me|]?",
        "[Find|Calculate|Work out|Tell me] [the number of|how many] centimeters in {m} m {cm} cm.",
        "{m} m {cm} cm = ? cm",
        "[Use|With] 1 m = 100 cm, [what|how many cm] is {m} m {cm} cm[ in cm|]?",
        "One meter has 100 centimeters. How many [centimeters|cm] [have|are] {m} meters and {cm} centimeters?",
        "Length in [cm|centimeters] of {m} m {cm} cm?",
        "[Someone|A jumper] jumps {m} m {cm} cm. [How far is that in cm?|How many centimeters is the jump?]",
        "[Rewrite|Express|State] {m} m {cm} cm [using|with] centimeters only.",
        "A [river|snake|field] measures {m} meters and {cm} centimeters. What is that in centimeters?",
        "If a [rope|wall|fence] has {m} m {cm} cm, how many cm does it have?",
        "I want {m} m {cm} cm [as|in] [centimeters|cm].",
        "From meters to centimeters: [convert|change] {m} m {cm} cm.",
    ),
    held_out=(
        "Please express {m} m {cm} cm in centimeters.",
        "How many centimeters do {m} meters and {cm} centimeters have?",
        "A rope measures {m} m {cm} cm. What is its length in cm?",
        "Can you change {m} m and {cm} cm into centimeters?",
        "Work out what {m} m {cm} cm is in cm.",
    ),
    frames=_unit_frames("{m} m {cm} cm", "centimeters"),
)

KILOGRAMS = instruction(
    "kilograms_to_grams",
    _draw_kilograms,
    phrasings=(
        "[Convert|Change|Turn|Please convert] {kg} kg {g} g [to|into] [g|grams].",
        "How many [g|grams] are {kg} kg [and|] {g} g?",
        "[Write|Give|Express] {kg} kilograms and {g} grams in [g|grams][ only|].",
        "What is {kg} kg {g} g in [grams|g]?",
        "[Given|Take] a weight of {kg} kg {g} g[,| and] [convert|change] it to [g|grams].",
        "A [bag|box|cat|parcel|stone] weighs {kg} kg {g} g. How [many grams|many g] is that?",
        "[The|Its] weight is {kg} kg {g} g. [How many grams is that?|Give it in g.|What is it in grams?]",
        "{kg} kg {g} g: [how many g?|in grams, please|convert to g].",
        "I have {kg} kilograms and {g} grams of [flour|rice|sand]. How many grams [is that|do I have]?",
        "[Could|Can|Would] you [please |]convert {kg} kg {g} g [to|into] [g|grams][ for me|]?",
        "[Find|Calculate|Work out|Tell me] [the number of|how many] grams in {kg} kg {g} g.",
        "{kg} kg {g} g = ? g",
        "[Use|With] 1 kg = 1000 g, [what|how many g] is {kg} kg {g} g[ in g|]?",
        "One kilogram has 1000 grams. How many [grams|g] [have|are] {kg} kilograms and {g} grams?",
        "Weight in [g|grams] of {kg} kg {g} g?",
        "[Someone|A cook] buys {kg} kg {g} g of [flour|rice]. [How much is that in g?|How many grams is that?]",
        "[Rewrite|Express|State] {kg} kg {g} g [using|with] grams only.",
        "A [sack|basket|dog] has a weight of {kg} kilograms and {g} grams. What is that in grams?",
        "If a [bag|box|parcel] has {kg} kg {g} g, how many g does it have?",
        "I want {kg} kg {g} g [as|in] [grams|g].",
        "From kilograms to grams: [convert|change] {kg} kg {g} g.",
    ),
    held_out=(
        "Please express {kg} kg {g} g in grams.",
        "How many grams do {kg} kilograms and {g} grams have?",
        "A bag weighs {kg} kg {g} g. What is its weight in g?",
        "Can you change {kg} kg and {g} g into grams?",
        "Work out what {kg} kg {g} g is in g.",
    ),
    frames=_unit_frames("{kg} kg {g} g", "grams"),
)

HOURS = instruction(
    "hours_to_minutes",
    _draw_hours,
    phrasings=(
        "[Convert|Change|Turn|Please convert] {h} hours {min} minutes [to|into] minutes.",
        "How many minutes are {h} hours [and|] {min} minutes?",
        "[Write|Give|Express] {h} hours and {min} minutes in minutes[ only|].",
        "What is {h} hours {min} minutes in minutes?",
        "[Given|Take] a time of {h} hours {min} minutes[,| and] [convert|change] it to minutes.",
        "A [film|trip|flight|concert|game] takes {h} hours {min} minutes. How many minutes is that?",
        "[The|Its] time is {h} hours and {min} minutes. [How many minutes is that?|Give it in minutes.|What is it in "
        "minutes?]",
        "{h} hours {min} minutes: [how many minutes?|in minutes, please|convert to minutes].",
        "I have {h} hours and {min} minutes [left|of time]. How many minutes [is that|do I have]?",
        "[Could|Can|Would] you [please |]convert {h} hours {min} minutes [to|into] minutes[ for me|]?",
        "[Find|Calculate|Work out|Tell me] [the number of|how many] minutes in {h} hours {min} minutes.",
        "{h} hours {min} minutes = ? minutes",
        "[Use|With] 1 hour = 60 minutes, [what|how many minutes] is {h} hours {min} minutes[ in minutes|]?",
        "One hour has 60 minutes. How many minutes [have|are] {h} hours and {min} minutes?",
        "Time in minutes of {h} hours {min} minutes?",
        "[Someone|A runner] runs for {h} hours {min} minutes. [How long is that in minutes?|How many minutes is that?]",
        "[Rewrite|Express|State] {h} hours {min} minutes [using|with] minutes only.",
        "A [lesson|meeting|drive] lasts {h} hours and {min} minutes. What is that in minutes?",
        "If a [film|trip|game] has {h} hours {min} minutes, how many minutes does it have?",
        "I want {h} hours {min} minutes [as|in] minutes.",
        "From hours to minutes: [convert|change] {h} hours {min} minutes.",
    ),
    held_out=(
        "Please express {h} hours {min} minutes in minutes.",
        "How many minutes do {h} hours and {min} minutes have?",
        "A trip lasts {h} hours {min} minutes. What is its time in minutes?",
        "Can you change {h} hours and {min} minutes into minutes?",
        "Work out what {h} hours {min} minutes is in minutes.",
    ),
    frames=_unit_frames("{h} hours {min} minutes", "minutes"),
)

FAMILIES = (DATE_AFTER, WEEKDAY_AFTER, ISO_DATE, METERS, KILOGRAMS, HOURS)
