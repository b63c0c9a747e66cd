"""AutoAttack `plus` and `rand` from end to end: exact on linear models, and as strong as the authors' own code on a randomised network."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from test_native import LINF, Linear, Wrapped, attacked, built, digits, exactly, official, trained

from attacks import one_thread as one_thread
from rtbench.parts.threats import Threat


@pytest.mark.parametrize(("version", "names", "threat"), [
    ("plus", ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"], Threat("linf", Fraction(1, 20))),
    ("rand", ["apgd-ce", "apgd-dlr"], Threat("linf", Fraction(1, 20))), ("rand", ["apgd-ce", "apgd-dlr"], Threat("l2", Fraction(1, 3))),
])  # fmt: skip
def test_robust_accuracy_of_linear_models_is_the_exact_one(version: str, names: list[str], threat: Threat) -> None:
    rng = torch.Generator().manual_seed(1)
    model = Linear(torch.randn(5, 64, generator=rng), torch.randn(5, generator=rng) / 4)
    x = torch.rand(20, 1, 8, 8, generator=rng)
    y = model(x).argmax(1)
    lead = exactly(model, x, y, threat)
    sure = lead.abs() > 1e-4
    found = attacked(model, built("autoattack", version=version), threat, torch.arange(20), data=(x, y))
    assert list(found.inner) == names and 2 < int((lead > 0).sum()) < 17
    assert torch.equal(found.robust[sure], lead[sure] > 0) and sure.double().mean() > 0.9


def test_rand_on_a_randomised_network_is_no_weaker_than_the_authors_own_code() -> None:
    """Noise on the logits that does not hide the gradient: averaging has to see through it."""
    generator = torch.Generator().manual_seed(0)
    x, y = digits()
    model = Wrapped(trained(eps=0.1, steps=100), after=lambda z: z + 0.05 * torch.randn(z.shape, generator=generator))
    ours = attacked(model, built("autoattack", version="rand"), LINF, torch.arange(12))
    theirs = official()(model, x[:12], y[:12], LINF, seed=0, version="rand").outcomes
    assert "randomised" in ours.flags
    for name, bits in ours.inner.items():
        assert int(bits.sum()) <= int((theirs[name] & ours.clean).sum()) + 1, name
    assert float(ours.accuracy) > 0.2
