"""STE: mask learning from the first step, gradients passed straight through.

Source: Zhou et al., ICLR 2021, arXiv 2102.04010, with lambda_w = 0.
"""

from dataclasses import dataclass

from step_cli.optim.recipe import Recipe


@dataclass(frozen=True)
class STE(Recipe):
    """Plain STE."""
