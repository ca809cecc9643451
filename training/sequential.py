"""Two models compared label by label, with a look after each: a test that stays valid however often it is looked at.

McNemar's test is made for one look. Who looks after every label and stops when p is small finds a difference sooner or
later where there is none. The test martingale here keeps its word at any number of looks (Ville's inequality).
"""

from __future__ import annotations

import math

from scipy import special


def evidence(wins: int, losses: int, chance: float = 0.5) -> float:
    """How strongly rows on which just one of two models is right speak for "the first one is better".

    An e-value: if the first one is not better, the chance that it ever reaches 1 / alpha, over all looks together, is
    at most alpha. It is the likelihood of the rows if the first one wins each with a probability drawn uniformly from
    1/2 to 1, over their likelihood if it wins half of them (Robbins, 1970; Ramdas et al., 2023, "Game-theoretic
    statistics and safe anytime-valid inference").

    With another `chance` it says the same of any event that should happen to no more than that share of the rows.

    Args:
        wins: rows that only the first model has right.
        losses: rows that only the second model has right.
        chance: of a win, where there is nothing to show; above 0 and below 1.
    """
    above = special.betaincc(wins + 1, losses + 1, chance)
    if above == 0.0:
        return 0.0
    log_mixture = special.betaln(wins + 1, losses + 1) + math.log(above) - math.log1p(-chance)
    return math.exp(min(700.0, log_mixture - wins * math.log(chance) - losses * math.log1p(-chance)))


def fewest_wins(alpha: float) -> int:
    """How many wins without any loss it takes to show a difference at this level."""
    wins = 0
    while evidence(wins, 0) < 1 / alpha:
        wins += 1
    return wins
