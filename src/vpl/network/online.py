"""Seeds refined while the head learns, by what the head itself has learned (WeCLIP, arXiv 2406.11189). [ref]

    d_l = Σ ( a − A_l ),   kept: the layers l with d_l ≤ mean d
    M ← ( Σ_kept A_l ) / ( n_kept + 1e-5 ) · a elementwise,   then spread as in METHOD.md 2
    seeds ← M · cam, min-max, to pixels;   background = 1 − max seed;   labels = argmax of PAR( background, seeds )

a is the head's affinity of patches (affinity), A_l the encoder's attention between patches in layer l, mean over heads.
Σ a is the same for every layer, so the kept layers are those whose attention stays among the patches rather than with
the class token: the mass of A_l is at least the mean. Letters: L layers · K tags of an image · h w patch grid · H W
pixels.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

KEPT_EPS = 1e-5
"""Added to the number of kept layers. [ref]"""


def kept_layers(attention: Float[Tensor, "L hw hw"], affinity: Float[Tensor, "hw hw"]) -> Bool[Tensor, " L"]:
    """Which layers' attention the head's affinity agrees with at least as much as with the mean layer's."""
    distances = (affinity - attention).sum(dim=(1, 2))
    return distances <= distances.mean()


def joint_attention(attention: Float[Tensor, "L hw hw"], affinity: Float[Tensor, "hw hw"]) -> Float[Tensor, "hw hw"]:
    """M before it is spread: the kept layers' mean attention where the head finds patches alike.

    Args:
        attention: of the encoder's last layers, rows from, columns to.
        affinity: the head's, in [0, 1].
    """
    kept = kept_layers(attention, affinity)
    return attention[kept].sum(dim=0) / (int(kept.sum()) + KEPT_EPS) * affinity
