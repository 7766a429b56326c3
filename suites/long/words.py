"""Words to hide and to count: adjectives and nouns of everyday English, written for this suite (no list of others).

    words(rng, 3)        ->  ["harbor", "quiet", "lantern"]
    keys(rng, 2)         ->  ["brave-lantern", "misty-canyon"]

An edition of items is made of these very words in this order: a change here is a new edition.
"""

from __future__ import annotations

import random

ADJECTIVES = tuple(
    """
    able agile alert amber ample ancient arctic autumn azure basic bitter blank bleak blunt bold brave brief bright brisk broad
    bronze busy calm candid careful casual cheap cheerful chilly civil clean clear clever cloudy clumsy coarse coastal cold
    common compact content cool copper coral cosmic costly cozy crimson crisp curious curly cyan damp daring dark dear decent
    deep dense dim distant double dreary dry dull dusty eager early earnest easy elastic elder elegant empty even exact exotic
    faded faint fair faithful famous fancy fast feeble fertile fierce final fine firm flat fluffy fond formal fragile frank free
    fresh friendly frosty frozen full funny gentle giant gifted glad gleaming global glossy golden good graceful grand grateful
    gray great green grim happy hardy harsh hasty hazy heavy helpful hidden hollow honest humble icy idle indigo inner ivory jolly
    keen kind large late lavish lazy lean level light little lively local lofty lonely long loose loud lovely loyal lucky lunar
    mellow merry mighty mild minor misty modern modest moist muddy muted narrow natural neat new nimble noble northern novel
    odd olive open orange ornate outer pale patient perfect plain playful pleasant plump polar polite proud prudent public pure
    purple quaint quick quiet rapid rare raw ready regal remote rich rigid ripe robust rocky rosy rough round royal rugged rural
    rustic safe salty sandy scarlet secret sharp shiny short shy silent silky silver simple sincere sleek slender slim slow small
    smart smooth snowy sober soft solar solid sour southern sparse spicy stable stark steady steep stern stiff still stony stormy
    strange strict strong sturdy subtle sunny superb sweet swift tall tame tart tender thick thin thirsty tidy tight tiny tired
    tough tranquil urban useful vacant vague vast velvet violet vital vivid warm wary weary western wet white whole wide wild wise
    witty wooden woolly worthy yellow young zesty
    """.split()
)
NOUNS = tuple(
    """
    acorn airport almond anchor ankle antler anvil apple apron arrow artist atlas attic aunt badge bagel baker balcony ballad
    balloon bamboo banana banner barley barrel basin basket beach beacon beaver bedroom beetle bell bench berry bicycle bishop
    blanket blossom boat bonnet border bottle boulder branch bread breeze brick bridge broom brother bucket buckle bugle button
    cabin cable cactus camel camera candle canoe canvas canyon captain caravan carpet carriage castle cave cedar cellar chain
    chalk chapel cherry chest chimney church circle citizen clay cliff clock cloud clover coach cobbler coffee collar comet
    compass copper cottage cotton cousin crab cradle crane crater crayon creek cricket crown crystal cupboard curtain cushion
    daisy dancer desert diamond dinner doctor dolphin donkey door dragon drawer dream driver drum eagle earth easel echo elbow
    elephant elm ember engine envelope evening fable falcon family farmer feather fence fiddle field finger flag flame flock
    flour flower flute forest fork fortress fossil fountain fox friend frost fruit galaxy garage garden garlic gate ginger
    glacier glass globe glove goose grain granite grape grass gravel guitar hammer hammock harbor harvest hazel heart hedge helmet
    heron hill honey horizon horse hotel hunter island ivory jacket jewel jigsaw journal journey jungle kettle key kitchen kite
    knight ladder lagoon lake lantern lemon letter library lily lion lizard lobster locket lumber magnet mango mansion maple
    marble market meadow medal melon melody meteor mirror mitten monkey moon morning moss motor mountain museum music napkin
    needle nest nickel notebook nurse oasis ocean olive onion orbit orchard orchid organ otter oven owl oyster paddle painter
    palace panda parade parcel parrot pasture path peach peacock pearl pebble pelican pencil penguin pepper piano picnic pillow
    pilot pine pirate planet plaza plum pocket poem pond poppy potato prairie prince prism pumpkin puppet puzzle quarry quartz
    queen rabbit raccoon radish raft railway rain raven ribbon rice river robin rocket roof rope rose ruby saddle sailor salmon
    sand sandal saucer scarf scholar school shadow shell shepherd shield ship shoe shore shovel singer sister sketch sleeve
    slipper snail soldier song sparrow spider spoon spring spruce square squirrel stable stair star statue stone storm stove
    stream street student sugar summit sunset swallow table tailor teacher temple tent theater thimble thistle thunder ticket
    tiger timber tower trail train treasure trumpet tulip tunnel turtle tutor twig uncle valley vase vessel village vine violin
    volcano voyage wagon walnut walrus water wave weaver whale wheat wheel whistle willow window winter wolf wool worker yard
    zebra
    """.split()
)
SINGLE = tuple(sorted({*ADJECTIVES, *NOUNS}))
"""Every word once."""


def words(rng: random.Random, count: int) -> list[str]:
    """`count` different words. Beyond the list, pairs written as one with a hyphen, as RULER's keys are."""
    if count <= len(SINGLE):
        return rng.sample(SINGLE, count)
    pairs = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count - len(SINGLE))
    joined = [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]
    mixed = [*SINGLE, *joined]
    rng.shuffle(mixed)
    return mixed


def keys(rng: random.Random, count: int) -> list[str]:
    """`count` different keys of an adjective and a noun; none of them is the end or the beginning of another."""
    pairs = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]
