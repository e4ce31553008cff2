"""f-divergences between the predictions on labeled and on unlabeled images.

``D_f(P || Q) = E_Q[f(dP/dQ)]``, f convex on t > 0, f(1) = 0; P is the labeled and Q the unlabeled side. Estimators:

- ``marginal``: P and Q are the mean class probabilities over batch and pixels; closed form.
- ``regional``: the same in each cell of a grid over the image, averaged over the cells; closed form.
- ``conditional``: the same over the pixels predicted as each class, averaged over the classes; closed form. Blind to
  how often a class occurs, which truly differs between sites.
- ``variational``: a critic T on every pixel's class probabilities raises ``E_P[T] - E_Q[f*(T)]``, a lower bound of the
  divergence between the distributions of those probabilities (Nguyen, Wainwright and Jordan, arXiv 0809.0853; f-GAN,
  arXiv 1606.00709; f-DAL, arXiv 2106.11344), which by the data-processing inequality is never below the marginal one.

That DiM (arXiv 2411.12350) minimises an f-divergence between labeled and unlabeled predictions is the paper's; these
estimators are our reconstruction, as its formulas were not available.
"""

from dim_hf.divergences.class_masses import (
    PROBABILITY_FLOOR,
    closed_form,
    conditional_mass,
    divergence_between,
    divergence_between_masses,
    regional_log_probabilities,
    regional_mass,
)
from dim_hf.divergences.critic import LOG_RATIO_LIMIT, Critic, variational_lower_bound
from dim_hf.divergences.generators import F_DIVERGENCES, FDivergence, alpha_divergence, get_f_divergence

ESTIMATORS = ("marginal", "regional", "conditional", "variational")

__all__ = [
    "ESTIMATORS",
    "F_DIVERGENCES",
    "LOG_RATIO_LIMIT",
    "PROBABILITY_FLOOR",
    "Critic",
    "FDivergence",
    "alpha_divergence",
    "closed_form",
    "conditional_mass",
    "divergence_between",
    "divergence_between_masses",
    "get_f_divergence",
    "regional_log_probabilities",
    "regional_mass",
    "variational_lower_bound",
]
