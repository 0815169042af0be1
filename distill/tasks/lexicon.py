"""Word lists of the task world: names, cities, categories, nouns, verbs, adjectives, and their inflections."""
# ruff: noqa: SIM905  (a list of words reads best as running text)


def _unique(words: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


NAMES = tuple(
    """Anna Ben Carl Dora Emil Fay Greg Hana Ivan Judy Karl Lena Max Nina Omar Paul Quinn Rosa Sam Tina Ugo Vera Walt
    Xena Yara Zoe Adam Beth Cody Dana Eric Fiona Gina Hugo Iris Jack Kate Liam Mona Noah Olga Pete Rita Seth
    Tara Uma Vince Wendy Yuri Zack Amir Bruno Clara Diego Elsa Felix Grace Henry Ines Jonas Kim Luis Maria Nora
    Oscar Petra Ralf Sara Tom Ursula Victor Willa Alan Bella Chris Doris Ella Frank Gwen Helen Isaac Jane Kurt
    Laura Mark Nick""".split()
)

CITIES = tuple(
    """Lima Oslo Rome Paris Berlin Madrid Lisbon Vienna Prague Athens Cairo Tokyo Delhi Seoul Sydney Boston Chicago
    Denver Dublin London Milan Turin Porto Geneva Zurich Munich Hamburg Warsaw Riga Kyiv Quito Bogota Havana
    Dakar Lagos Nairobi Tunis Rabat Ankara Tehran Mumbai Hanoi Manila Jakarta Perth Toronto Ottawa Dallas
    Seattle Miami""".split()
)

COLORS = tuple("red blue green black white brown yellow orange purple pink gray golden silver violet".split())

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruit": tuple(
        "apple pear lemon banana cherry grape peach plum mango melon kiwi papaya lime apricot coconut".split()
    ),
    "animal": tuple(
        "horse tiger rabbit sheep camel monkey zebra goat lion wolf bear mouse donkey turtle panda kitten".split()
    ),
    "tool": tuple(
        "hammer drill wrench shovel rake chisel pliers saw screwdriver axe ladder crowbar clamp spade".split()
    ),
    "clothing": tuple("shirt jacket scarf glove sock coat dress sweater skirt hat belt boot pants vest mitten".split()),
    "furniture": tuple(
        "table chair sofa desk shelf bench stool cabinet wardrobe drawer bed armchair bookcase couch".split()
    ),
    "vehicle": tuple("train truck tram boat ship plane bicycle scooter wagon taxi tractor ferry bus van canoe".split()),
    "instrument": tuple(
        "piano violin guitar flute drum trumpet harp cello organ banjo clarinet tuba oboe ukulele".split()
    ),
    "vegetable": tuple(
        "carrot onion potato tomato pepper cabbage spinach celery radish turnip pea bean leek garlic".split()
    ),
    "job": tuple(
        "doctor teacher farmer baker pilot nurse lawyer painter plumber singer judge tailor waiter dentist".split()
    ),
    "color": COLORS,
    "drink": tuple("water milk juice coffee tea lemonade cocoa soda wine cider smoothie beer".split()),
    "sport": tuple("tennis soccer hockey golf rugby boxing baseball swimming cricket judo rowing skiing".split()),
}

NOUNS = _unique(
    """stone river candle garden window bottle pencil castle bridge forest pocket basket button carpet circle cloud
    corner desert dinner dragon engine family feather finger flower friend ginger guest hill hotel island jewel
    jungle kettle kitchen ladle lamp lantern leaf letter magnet market meadow metal mirror moon mountain museum
    needle nest number ocean office orchard oven owner packet paint paper parcel park pebble person phone
    picture pillow planet plate player pond powder prize puddle puzzle rain record ribbon ring road rocket roof
    room rope sand sandal school sea season secret shadow shell shop signal smile snake song soup spoon spring
    square stamp star station steam storm story street string student summer sunset symbol temple tent thread
    ticket tiger toast toy trail travel tree tunnel uncle valley vase village voice wall wheel whistle wind
    winter wizard wolf wonder world yard zone actor anchor angel arrow artist autumn badge balloon barrel beach
    bell berry bird blanket board body book border bowl box boy branch brick broom brother brush bucket builder
    camera camp canal cannon captain card carton cave ceiling center chain chalk cheese child church cinema
    clock cloth coast coin collar comet concert cook copper cord cotton cousin cover cradle crayon cream creek
    crowd crown cup curtain cushion customer dancer daughter deer diamond dish doctor dollar door dream driver
    duck eagle earth elbow energy envelope evening eye face factory farm father fence field fire fish flag floor
    fog food foot fork fountain fox frame frog game gate gift girl glass goal goose grain grass ground group
    guard hall hammer hand handle harbor harvest head heart helmet hen hero hole holiday honey hook house hunter
    ice image inch insect iron jar jelly journey judge key king kite knee knife knot label lake land lane leader
    leg lesson level lid light line lock log machine mail map marble mask match meal medal message mile mill
    minute model money month morning mother motor mouth music nail name neck net night noise nose note nurse oil
    package page pair palace panel parent party path patient peak pearl person pilot pin pipe pirate plan plant
    pocket poem point pole police pool port post potato present price prince printer prison queen question
    rabbit race radio rail raft rat razor report reward rice rider river robot rock rod rose route rule sack
    saddle sail salt sample scene science screen seat seed sentence servant shape shark shelter sheriff shirt
    shoe shoulder sign silver sister skin sky sleeve slice snow soap soldier sound space spark spider sponge
    stage stair statue step stick stomach store stove straw stream suit sun swan sword tail tank target task
    taste tea team teeth test thing thumb thunder tongue tool tooth top towel tower town track trade trap tray
    treasure trick trip trunk turkey twin umbrella unit view violin visitor wagon watch water wave wax week
    whale wife wing wire woman wood wool word worker worm wrist writer year""".split()
)

VERBS = _unique(  # regular, without doubling of the last consonant
    """paint clean open close jump walk talk cook wash play look help start turn learn listen work point count answer
    follow collect borrow remember explain repeat visit watch wait want need climb cover deliver discover enter
    fold gather guess happen hunt join kick knock land laugh lift load mark mend melt mix move offer order pack
    pass pick plant pour press print pull push rain reach repair rest return roll row sail save search shout
    smell snow spell splash spray squeeze stay stretch subtract suggest talk taste thank tick touch train travel
    treat trust twist type vanish warm warn water whisper whistle wish wonder yell zoom act add allow appear
    arrest ask attack attend bake beg bless boil book bow brush burn call carve chase chew comb compare complain
    confess correct cough crash cross dance dare decide delay depend develop draw drift drown dust earn employ
    end enjoy escape expand fail fasten fear fetch film fix flash float flow fool frame fry glow greet grow
    guide hammer hand hang hate heal heat hook hope hover hum hurry ignore impress inform inject invent invite
    itch jail joke judge juggle knot label lead level lick like list live lock long love""".split()
)

ADJECTIVES = _unique(
    """happy green quick small bright heavy quiet sweet clever broken frozen gentle golden hungry narrow purple rough
    silent smooth tender yellow ancient careful curious famous friendly honest lonely modern nervous perfect
    polite proud rapid round royal secret shiny simple sleepy solid spicy steady strange strong sudden sunny
    tall tasty thick tidy tiny tired useful warm weak wild wise wooden young brave calm cheap clean clear cold
    cool crisp dark deep dirty dry early easy empty equal fair fancy fast fine firm flat fresh full funny glad
    good great hard hidden high hollow hot huge icy ideal jolly keen kind large late lazy light little local
    loose loud lovely low lucky main mild muddy neat new nice noisy odd old open pale plain poor pretty quaint
    rare ready real rich ripe rosy rusty safe salty sharp short shy slim slow soft sore sour spare stiff sticky
    stormy super sure thin tough tricky true ugly upper urban usual vague vast vivid weary wet white wide windy
    witty wrong zesty""".split()
)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _verb_forms(verb: str) -> tuple[str, ...]:
    stem = verb[:-1] if verb.endswith("e") else verb
    past = verb[:-1] + "ied" if verb.endswith("y") and verb[-2] not in "aeiou" else stem + "ed"
    return verb, _plural(verb), past, stem + "ing"


ALL_NOUNS = _unique([*NOUNS, *(word for words in CATEGORIES.values() for word in words)])
WORDS = _unique([word for word in (*ALL_NOUNS, *ADJECTIVES, *VERBS) if 3 <= len(word) <= 8])
SPELLABLE = tuple(  # what is spelled letter by letter: base words and simple inflections
    word
    for word in _unique(
        [
            *WORDS,
            *(_plural(noun) for noun in ALL_NOUNS),
            *(form for verb in VERBS for form in _verb_forms(verb)),
        ]
    )
    if 4 <= len(word) <= 8
)
