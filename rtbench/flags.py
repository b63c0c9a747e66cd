"""What a flag on a result means. Attacks and probes raise flags; a flag never changes a number, it says how far to trust it."""

from __future__ import annotations

CHANCE = "chance-level"
"""The network hardly depends on its input: its row is not ranked."""
INCOMPLETE = "incomplete"
"""The number is no worst case: an attack is missing in it."""
MARKS, PLAIN = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", "abcdefghijklmnoprstuvwxyz"
"""Letters that stand beside a number, one for each flag on a board; and what they are where there is no raised type."""
FLAGS = {
    CHANCE: "The network is right about as often as a constant answer, so it has nothing to be robust about. The row is not ranked.",
    "zero-gradient": "The gradient vanished on some samples: gradient attacks are blind there and robust accuracy may be overstated.",
    "masked-gradient": "An attack without gradients broke samples that gradient attacks could not: robust accuracy may be overstated.",
    "randomised": "The network answers the same input differently each time; an attack has to average over that.",
    "probabilities": "The network gives probabilities, not logits, which weakens attacks that follow the loss.",
    "dynamic-forward": "The network seems to optimise while it answers, which the attack does not see through: test it adaptively.",
    "train-mode": "The network was in train mode; it was judged in eval mode, so it may act otherwise where it is used.",
    "few-classes": "There are fewer classes than the attack is made for, so some of its parts are weaker or left out.",
    "steps-shorter-than-eps": "All the attack's steps together do not reach the edge of the ball, so it tested a smaller eps.",
    INCOMPLETE: "One of several attacks failed, so the worst case over them is missing it: robust accuracy may be overstated.",
}


def meaning(flag: str) -> str:
    """One or two sentences; flags of plugins are explained by their plugin."""
    return FLAGS.get(flag, "Raised by the attack or the probe; its documentation says when.")
