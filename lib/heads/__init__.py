"""All heads by name: those of lib.losses, their relatives, triplet, and the variants of AdaLoss."""

from lib.heads import relatives, triplet, variants
from lib.losses import HEADS, Head

# the losses that the study compares
NINE = (
    "Softmax", "NormFace", "SphereFace", "CosFace", "ArcFace", "CombinedMargin", "CurricularFace", "AdaFace", "AdaLoss",
)  # fmt: skip


def heads() -> dict[str, type[Head]]:
    """All heads by name, the nine first."""
    known = {**HEADS, **relatives.HEADS, "Triplet": triplet.Triplet}
    return {name: known[name] for name in (*NINE, *known)}


def find(name: str) -> type[Head]:
    """The head, or the variant of AdaLoss, of that name. Raises ValueError for an unknown one."""
    known = {**heads(), **variants.HEADS}
    if name not in known:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(heads())}")
    return known[name]


def make(name: str, num_classes: int, embedding_dim: int, **constants: object) -> Head:
    """The head of that name. Raises ValueError for an unknown name or constant."""
    head = find(name)
    try:
        return head(num_classes, embedding_dim, **constants)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
