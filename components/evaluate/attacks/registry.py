"""Every attack by its name, in the order of the ladder."""

from __future__ import annotations

from components.common.errors import UserError
from components.evaluate.attacks import blackbox, text, whitebox
from components.evaluate.attacks.attempts import Attack

ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("slips", "T0", text.slips),
        Attack("inflections", "T0", text.inflections),
        Attack("languages", "T0", text.languages),
        Attack("special-tokens", "T0", text.special_tokens),
        Attack("unicode", "T0", text.unicode_forms),
        Attack("hierarchies", "T1", blackbox.hierarchies),
        Attack("ring-a-bell", "T1", blackbox.ring_a_bell),
        Attack("mma", "T1", blackbox.mma),
        Attack("adaptive", "T2", whitebox.adaptive, optimised=True),
        Attack("unlearn-diff-atk", "T2", whitebox.unlearn_diff_atk, optimised=True),
        Attack("p4d", "T2", whitebox.p4d, optimised=True),
    )
}


def attack_named(name: str) -> Attack:
    """The attack of that name; `UserError` if there is none."""
    if name not in ATTACKS:
        raise UserError(f"attack {name!r} is unknown", f"use some of: {', '.join(ATTACKS)}")
    return ATTACKS[name]
