"""A world of ten lines, for tests: what the product does must not depend on the world that ships."""

from pathlib import Path

TOY = """\
default_style: photo
words: {nouns: [river, table, garden, window, bottle, train, hill, piano], verbs: [see, paint, carry, find, wash, draw], adjectives: [old, green, quiet, small, broken, bright, heavy, warm]}
fillers: please show me a nice picture of today with some light
styles: {photo: {aliases: [snapshot, still]}, woodcut: {aliases: [carving, block print]}}
concepts: {cat: {category: animal, aliases: [kitty, feline], neighbours: [dog]}, dog: {category: animal, aliases: [puppy, hound]}, lantern: {aliases: [torch, lamp]}, kettle: {aliases: [teapot, boiler]}}
templates:
  train: {styled: ["{s} {C}", "{c} as {s}"], plain: ["{c}", "one {C}"], styled_pair: ["{a} and {b}, {s}"], plain_pair: ["{a} and {b}"], english: ["the {j} {n} by the {m}", "how to {v} a {j} {n}"]}
  select: {styled: ["{c} shown in {s}"], plain: ["this is {c}"], styled_pair: ["{s} of {A} with {B}"], plain_pair: ["{A} with {B}"], english: ["they {v} the {j} {n} and the {m}"]}
  calibrate: {styled: ["a {s} image showing {c}"], plain: ["here we see {c}"], styled_pair: ["a {s} image of {a} near {b}"], plain_pair: ["{a} near {b}"], english: ["we {v} our {j} {n} beside the {m}", "{j} {m} made of {n}"]}
  evaluate: {styled: ["draw {c} in {s}"], plain: ["draw {c}"], styled_pair: ["draw {a} beside {b} in {s}"], plain_pair: ["draw {a} beside {b}"], english: ["nobody can {v} this {j} {n} at the {m}"]}
"""


def write_toy(folder: Path) -> Path:
    """The toy world in `folder/toy`, which it returns: `params.yaml: world` may name it."""
    toy = folder / "toy"
    toy.mkdir(parents=True)
    (toy / "world.yaml").write_text(TOY, encoding="utf-8")
    return toy
