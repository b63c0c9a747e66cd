"""What torchattacks 3.5.1 offers: each attack's name, the norms that it is made for, what it needs, and what is refused and why."""

from __future__ import annotations

from typing import Literal

Name = Literal[
    "APGD", "APGDT", "AutoAttack-10-steps", "BIM", "CW", "DIFGSM", "DeepFool", "EADEN", "EADL1", "EOTPGD", "FAB", "FFGSM", "FGSM",
    "GN", "Jitter", "MIFGSM", "NIFGSM", "PGD", "PGDL2", "PGDRS", "PGDRSL2", "PIFGSM", "PIFGSMPP", "RFGSM", "SINIFGSM", "SPSA",
    "Square", "TIFGSM", "TPGD", "UPGD", "VANILA", "VMIFGSM", "VNIFGSM",
]  # fmt: skip

NORMS: dict[str, tuple[str, ...]] = {
    "APGD": ("linf", "l2"), "APGDT": ("linf", "l2"), "AutoAttack-10-steps": ("linf", "l2"), "FAB": ("linf", "l2"), "Square": ("linf", "l2"),
    "CW": ("l2",), "DeepFool": ("l2",), "PGDL2": ("l2",), "PGDRSL2": ("l2",), "EADEN": ("l2", "l1"), "EADL1": ("l1",),
    "GN": ("linf", "l2", "l1"), "VANILA": ("linf", "l2", "l1"),
    **dict.fromkeys(
        ("BIM", "DIFGSM", "EOTPGD", "FFGSM", "FGSM", "Jitter", "MIFGSM", "NIFGSM", "PGD", "PGDRS", "PIFGSM", "PIFGSMPP", "RFGSM",
         "SINIFGSM", "SPSA", "TIFGSM", "TPGD", "UPGD", "VMIFGSM", "VNIFGSM"),
        ("linf",),
    ),
}  # fmt: skip
"""The distance measures that an attack's documentation states, but for FAB under l1, which raises UnboundLocalError in this release.
Noise (GN) and nothing (VANILA) state none and go with all."""

LIBRARY_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
COLOUR_ONLY = ("PIFGSM", "PIFGSMPP", "TIFGSM")
"""They convolve the gradient with a kernel for three channels."""

FOUR_CLASSES = ("APGDT", "AutoAttack-10-steps")
"""Their targeted loss divides by the difference of the first and the mean of the third and fourth logit."""

_PIXELS = "it bounds the number of pixels that change (l0), which is no threat model of rtbench"
REFUSED = {
    "AutoAttack": 'it runs 10 steps where AutoAttack runs 100; use the attack "autoattack", or say "AutoAttack-10-steps"',
    "JSMA": _PIXELS, "OnePixel": _PIXELS, "Pixle": _PIXELS, "SparseFool": _PIXELS,
    "MultiAttack": "it wraps other attacks; list them as attacks of their own",
    "LGV": "it trains surrogate networks, which an attack here may not",
}  # fmt: skip
