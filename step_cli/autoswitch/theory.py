"""What the theory of the STEP paper says about the switch point, as numbers."""

import math

# Adam's v of steady noise of standard deviation sigma changes by (1 - beta2) times
# E|g^2 - sigma^2| = 4 phi(1) sigma^2 a step, phi the standard normal density.
STEADY_CHANGE = 4 * math.exp(-0.5) / math.sqrt(2 * math.pi)


def theorem_1_minimum(beta2: float) -> int:
    """The smallest t0 for which Theorem 1 of STEP holds: t0 > log_beta2(1 - 1/sqrt 2).

    Before it the bias correction of v still exceeds sqrt 2. 1228 at beta2 = 0.999.
    """
    return math.floor(math.log(1 - math.sqrt(0.5)) / math.log(beta2)) + 1


def noise_below(eps: float, beta2: float) -> float:
    """The standard deviation below which steady noise alone changes v by less than eps.

    Where gradients are smaller than that, AutoSwitch fires as soon as it may: eps
    cannot decide.
    """
    return math.sqrt(eps / (STEADY_CHANGE * (1 - beta2)))
