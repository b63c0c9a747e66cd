"""What a flag on a result means. Attacks and probes raise flags; a flag never changes a number, it says how far to trust it."""

from __future__ import annotations

CHANCE = "chance-level"
"""The network hardly depends on its input: its row is not ranked."""
BF16 = "bf16-missed"
"""A search in bfloat16 left samples that one in float32 breaks."""
INCOMPLETE = "incomplete"
"""The number is no worst case: an attack is missing in it."""
MARKS, PLAIN = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", "abcdefghijklmnoprstuvwxyz"
"""Letters that stand beside a number, one for each flag on a board; and what they are where there is no raised type."""
FLAGS = {
    CHANCE: "The network is right about as often as a constant answer, so it has nothing to be robust about. The row is not ranked.",
    "zero-gradient": "The gradient vanished on some samples: gradient attacks are blind there and robust accuracy may be overstated.",
    "masked-gradient": "An attack without gradients broke samples that gradient attacks could not: robust accuracy may be overstated.",
    "transfer-beats-white-box": "Examples made on other networks broke samples that the attack on this one could not: "
    "robust accuracy may be overstated.",
    "randomised": "The network answers the same input differently each time; an attack has to average over that.",
    "probabilities": "The network gives probabilities, not logits, which weakens attacks that follow the loss.",
    "dynamic-forward": "The network seems to optimise while it answers, which the attack does not see through: test it adaptively.",
    "train-mode": "The network was given in train mode and judged in eval mode, or its answers depend on what shares the batch even then.",
    "larger-eps-more-accurate": "An attack in a larger ball broke fewer samples: it is stuck, and robust accuracy may be overstated.",
    "unbounded-robust": "An attack that may change the image at will did not break every sample: gradients mislead it.",
    "noise-beats-gradients": "Random noise broke samples that the attack, or one by gradients, left robust: it is too weak here.",
    "loss-not-increasing": "The loss was not higher after an attack than before it: its gradients lead nowhere.",
    BF16: "Some samples that the search in bfloat16 left robust broke when attacked again in float32: robust accuracy is overstated.",
    "few-classes": "There are fewer classes than the attack is made for, so some of its parts are weaker or left out.",
    "steps-shorter-than-eps": "All the attack's steps together do not reach the edge of the ball, so it tested a smaller eps.",
    "catastrophic-overfitting": "While it was trained, accuracy under the guard's attack fell sharply: training learned to mislead its own "
    "attack, and robust accuracy under a weak attack says nothing.",
    INCOMPLETE: "One of several attacks failed, so the worst case over them is missing it: robust accuracy may be overstated.",
}
SOUGHT = {
    "randomised": ("judge",), "probabilities": ("judge",), "dynamic-forward": ("judge",), "train-mode": ("judge",),
    "zero-gradient": ("judge", "search"), "loss-not-increasing": ("judge",), "larger-eps-more-accurate": ("judge",),
    "unbounded-robust": ("judge",), "noise-beats-gradients": ("judge",), "masked-gradient": ("engine",), "few-classes": ("engine",),
}  # fmt: skip
"""Who looks for a flag: the judge, under every attack; the engine, under native ones; their search, where it happens to pass."""


def sought(by: str) -> list[str]:
    """The flags that "judge", "engine" or "search" looks for."""
    return [flag for flag, seekers in SOUGHT.items() if by in seekers]


def meaning(flag: str) -> str:
    """One or two sentences; flags of plugins are explained by their plugin."""
    return FLAGS.get(flag, "Raised by the attack or the probe; its documentation says when.")
