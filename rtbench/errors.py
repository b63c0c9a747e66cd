"""The user's mistakes: one sentence each, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user wrote or asked for. Its text is the whole message the user sees."""

    exit_code = 2


def unknown(what: str, name: object, choices: Iterable[str], where: str = "") -> UserError:
    """The one "no such thing, did you mean" sentence; `where` is the dotted path of the mistake."""
    known = sorted({str(choice) for choice in choices})
    folded = {choice.casefold(): choice for choice in reversed(known)}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.6)
    if near:
        hint = f'; did you mean "{folded[near[0]]}"?'
    elif known:
        hint = f"; there is {', '.join(known[:12])}{' and more' if len(known) > 12 else ''}"
    else:
        hint = ""
    return UserError(f'{where + ": " if where else ""}no {what} "{name}"{hint}')


class StoreError(UserError):
    """The store itself cannot go on (full disk, read-only): ends the whole run, not one stage."""
