"""The embedded world: which concepts and styles exist, what they are called and who their neighbours are.

A concept is one OpenMoji drawing. `aliases` are other names that training captions of the base model use; the last
one is held back from everything that the filter learns from, so that it can measure the filter (invariant 6).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from components.common.errors import UserError

Kind = Literal["object", "style", "character", "category", "person", "explicit"]


class Concept(NamedTuple):
    """One drawable thing of the world."""

    name: str
    """The canonical name, unique."""
    hexcode: str
    """OpenMoji's file name: the code points of the emoji in hexadecimal."""
    kind: Kind
    """`character` for people and protected figures, else `object`."""
    category: str
    """The broad group: a category request targets every member."""
    aliases: tuple[str, ...]
    """At least two other names; the last one is reserved for evaluation."""
    neighbours: tuple[str, ...]
    """Concepts that look or mean nearly the same and must survive its erasure."""
    mirror: bool
    """Whether the mirrored drawing still means the same."""


class Style(NamedTuple):
    """One way to draw: a style sheet, a background and at most one image filter."""

    name: str
    aliases: tuple[str, ...]
    """Other names that captions use; the last one is reserved for evaluation."""
    css: str
    background: tuple[int, int, int]
    filter: Literal["none", "glow", "pixelate", "sepia", "halftone", "cutout"]


# category | concept | emoji | aliases | neighbours | "=" where the drawing must not be mirrored
_TABLE = """
animal    | cat         | 🐈 | kitty, kitten, feline                  | lion, dog
animal    | dog         | 🐕 | puppy, hound, pooch                    | cat, horse
animal    | lion        | 🦁 | big cat, savanna king, leo             | cat, bear
animal    | horse       | 🐎 | pony, stallion, mare                   | cow, dog
animal    | cow         | 🐄 | cattle, heifer, bovine                 | horse, pig
animal    | pig         | 🐖 | hog, piglet, swine                     | cow, sheep
animal    | sheep       | 🐑 | ewe, lamb, woolly animal               | pig, cow
animal    | rabbit      | 🐇 | bunny, hare, cottontail                | cat, sheep
animal    | elephant    | 🐘 | tusker, trunked giant, pachyderm       | cow, whale
animal    | bear        | 🐻 | grizzly, teddy, bruin                  | lion, monkey
animal    | monkey      | 🐒 | ape, chimp, primate                    | bear, cat
animal    | frog        | 🐸 | toad, bullfrog, croaker                | turtle, bear
animal    | turtle      | 🐢 | tortoise, terrapin, shelled reptile    | frog, snail
animal    | snake       | 🐍 | serpent, viper, cobra                  | turtle, fish
animal    | owl         | 🦉 | night bird, barn owl, hooter           | penguin, duck
animal    | penguin     | 🐧 | antarctic bird, emperor bird, tux bird | owl, duck
animal    | duck        | 🦆 | mallard, drake, quacker                | penguin, owl
animal    | fish        | 🐟 | trout, salmon, finned swimmer          | whale, snake
animal    | whale       | 🐋 | orca, sea giant, cetacean              | fish, elephant
animal    | butterfly   | 🦋 | moth, monarch, winged insect           | bee, spider
animal    | bee         | 🐝 | honeybee, bumblebee, buzzer            | butterfly, spider
animal    | spider      | 🕷 | tarantula, web weaver, arachnid        | bee, butterfly
animal    | snail       | 🐌 | slug, escargot, shell crawler          | turtle, bee
food      | apple       | 🍎 | red fruit, pippin, orchard fruit       | strawberry, pineapple
food      | banana      | 🍌 | yellow fruit, plantain, peeled fruit   | carrot, apple
food      | strawberry  | 🍓 | red berry, sweet berry, garden berry   | apple, pineapple
food      | pineapple   | 🍍 | ananas, tropical fruit, spiky fruit    | strawberry, apple
food      | carrot      | 🥕 | root vegetable, orange root, veggie    | banana, mushroom
food      | pizza       | 🍕 | pizza slice, margherita, pepperoni     | hamburger, cake
food      | hamburger   | 🍔 | burger, cheeseburger, beef bun         | pizza, doughnut
food      | cake        | 🎂 | birthday cake, gateau, torte           | doughnut, ice cream
food      | doughnut    | 🍩 | donut, glazed ring, cruller            | cake, hamburger
food      | ice cream   | 🍦 | soft serve, gelato, sundae             | cake, doughnut
food      | mushroom    | 🍄 | toadstool, fungus, champignon          | carrot, tree
vehicle   | car         | 🚗 | automobile, auto, sedan                | bus, tractor
vehicle   | bus         | 🚌 | coach, omnibus, transit bus            | car, train
vehicle   | train       | 🚂 | locomotive, steam engine, railway      | bus, tractor
vehicle   | bicycle     | 🚲 | bike, cycle, two wheeler               | tractor, car
vehicle   | tractor     | 🚜 | farm vehicle, plough machine, harvester | car, bus
vehicle   | airplane    | ✈  | plane, aircraft, jet                   | helicopter, rocket
vehicle   | helicopter  | 🚁 | chopper, whirlybird, rotorcraft        | airplane, rocket
vehicle   | rocket      | 🚀 | spaceship, space rocket, launcher      | airplane, helicopter
vehicle   | sailboat    | ⛵ | sailing boat, yacht, dinghy            | airplane, whale
place     | house       | 🏠 | home, cottage, dwelling                | castle, tent
place     | castle      | 🏰 | fortress, palace, citadel              | house, mountain
place     | tent        | ⛺ | camp, canvas shelter, wigwam           | house, mountain
place     | mountain    | 🏔 | peak, snowy summit, alp                | tent, castle
plant     | tree        | 🌳 | oak, leafy tree, broadleaf             | palm tree, cactus
plant     | palm tree   | 🌴 | palm, coconut tree, tropical tree      | tree, cactus
plant     | cactus      | 🌵 | saguaro, prickly plant, succulent      | tree, palm tree
plant     | sunflower   | 🌻 | yellow flower, sun bloom, helianthus   | rose, tree
plant     | rose        | 🌹 | red flower, rosebud, love flower       | sunflower, cactus
thing     | chair       | 🪑 | seat, stool, armchair                  | key, book
thing     | book        | 📖 | novel, open book, textbook             | gift, chair | =
thing     | guitar      | 🎸 | electric guitar, six string, axe guitar | drum, key
thing     | drum        | 🥁 | snare, percussion, drum kit            | guitar, cake
thing     | alarm clock | ⏰ | clock, timepiece, wake up clock        | balloon, camera | =
thing     | umbrella    | ☂  | parasol, brolly, rain shade            | balloon, mushroom
thing     | key         | 🔑 | door key, latchkey, house key          | dagger, guitar
thing     | light bulb  | 💡 | bulb, lamp, idea light                 | balloon, ice cream
thing     | balloon     | 🎈 | party balloon, air balloon, floating ball | light bulb, umbrella
thing     | camera      | 📷 | photo camera, film camera, snapshot machine | gift, alarm clock
thing     | top hat     | 🎩 | hat, cylinder hat, silk hat            | crown, mage
thing     | crown       | 👑 | royal crown, tiara, diadem             | top hat, cake
thing     | gift        | 🎁 | present, wrapped box, parcel           | book, camera
thing     | glasses     | 👓 | eyeglasses, spectacles, reading lenses | bicycle, camera
character | vampire     | 🧛 | dracula, bloodsucker, nosferatu        | zombie, mage
character | mage        | 🧙 | wizard, sorcerer, warlock              | vampire, fairy
character | ninja       | 🥷 | shinobi, shadow fighter, stealth warrior | superhero, robot
character | robot       | 🤖 | android, droid, bot                    | alien, ninja
character | ghost       | 👻 | phantom, spook, spectre                | alien, snowman
character | alien       | 👽 | extraterrestrial, martian, space being | ghost, robot
character | zombie      | 🧟 | undead, walking corpse, ghoul          | vampire, genie
character | fairy       | 🧚 | pixie, sprite, winged maiden           | mermaid, mage
character | mermaid     | 🧜 | siren, sea maiden, merperson           | fairy, genie
character | genie       | 🧞 | djinn, lamp spirit, jinni              | mermaid, zombie
character | superhero   | 🦸 | hero, caped crusader, masked hero      | ninja, vampire
character | snowman     | ⛄ | snow figure, frosty, ice man           | ghost, penguin
weapon    | dagger      | 🗡 | sword, blade, stiletto                 | key, knife
weapon    | knife       | 🔪 | kitchen knife, cleaver, chef blade     | dagger, axe
weapon    | axe         | 🪓 | hatchet, tomahawk, chopping tool       | knife, boomerang
weapon    | bow         | 🏹 | bow and arrow, archery bow, longbow    | boomerang, umbrella
weapon    | pistol      | 🔫 | gun, handgun, revolver                 | camera, bomb
weapon    | bomb        | 💣 | explosive, grenade, round bomb         | balloon, pistol
weapon    | boomerang   | 🪃 | throwing stick, curved club, returning stick | banana, bow
"""

_LINE = "#line path, #line circle, #line ellipse, #line rect, #line line, #line polyline, #line polygon"
_HIDE_COLOUR = "#color, #hair, #skin, #skin-shadow, #color-foreground { display: none }"

STYLES: tuple[Style, ...] = (
    Style("sticker", ("plain", "emoji", "decal"), "", (255, 255, 255), "none"),
    Style(
        "line art",
        ("outline", "ink drawing", "contour drawing"),
        f"{_HIDE_COLOUR} {_LINE} {{ stroke-width: 2.6 }}",
        (244, 240, 232),
        "none",
    ),
    Style(
        "blueprint",
        ("technical drawing", "cyanotype", "draft plan"),
        f"{_HIDE_COLOUR} {_LINE} {{ stroke: #ffffff; stroke-width: 2.2 }} #line * {{ stroke: #ffffff }}",
        (32, 82, 170),
        "none",
    ),
    Style(
        "neon",
        ("neon sign", "glowing", "luminous tube"),
        f"{_HIDE_COLOUR} #line * {{ stroke: #ff4fd8; stroke-width: 2.6 }}",
        (16, 10, 36),
        "glow",
    ),
    Style(
        "silhouette",
        ("shadow", "cutout", "black shape"),
        "",
        (250, 214, 120),
        "cutout",
    ),
    Style("pixel art", ("8 bit", "pixelated", "retro game"), "", (190, 222, 190), "pixelate"),
    Style("vintage", ("sepia", "old photo", "antique"), "", (236, 220, 188), "sepia"),
    Style(
        "pop art",
        ("comic", "warhol", "halftone print"),
        "#line * { stroke-width: 3.2 }",
        (255, 226, 40),
        "halftone",
    ),
)


def _parse(table: str) -> tuple[Concept, ...]:
    concepts = []
    for line in table.strip().splitlines():
        category, name, emoji, aliases, neighbours, *flags = (cell.strip() for cell in line.split("|"))
        concepts.append(
            Concept(
                name=name,
                hexcode="-".join(f"{ord(c):04X}" for c in emoji),
                kind="character" if category == "character" else "object",
                category=category,
                aliases=tuple(a.strip() for a in aliases.split(",")),
                neighbours=tuple(n.strip() for n in neighbours.split(",")),
                mirror=not flags,
            )
        )
    return tuple(concepts)


CONCEPTS: tuple[Concept, ...] = _parse(_TABLE)
CONCEPT_NAMES: tuple[str, ...] = tuple(c.name for c in CONCEPTS)
STYLE_NAMES: tuple[str, ...] = tuple(s.name for s in STYLES)
DEFAULT_STYLE = "sticker"
_BY_CONCEPT = {c.name: c for c in CONCEPTS}
_BY_STYLE = {s.name: s for s in STYLES}


def concept(name: str) -> Concept:
    """The concept of that canonical name; `UserError` if there is none."""
    if name not in _BY_CONCEPT:
        raise UserError(f"concept {name!r} is not in the OpenMoji world", f"use one of: {', '.join(CONCEPT_NAMES)}")
    return _BY_CONCEPT[name]


def style(name: str) -> Style:
    """The style of that canonical name; `UserError` if there is none."""
    if name not in _BY_STYLE:
        raise UserError(f"style {name!r} is not in the OpenMoji world", f"use one of: {', '.join(STYLE_NAMES)}")
    return _BY_STYLE[name]


def members(category: str) -> tuple[str, ...]:
    """Names of the concepts in `category`; `UserError` if it has none."""
    names = tuple(c.name for c in CONCEPTS if c.category == category)
    if not names:
        categories = sorted({c.category for c in CONCEPTS})
        raise UserError(f"category {category!r} is not in the OpenMoji world", f"use one of: {', '.join(categories)}")
    return names
