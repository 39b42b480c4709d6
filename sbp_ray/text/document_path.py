"""A way through related documents that comes to each of them once: arithmetic on numbers, which touches no text.

Greedy, as in In-Context Pretraining (2310.10638): from a document to the nearest related one that is left; where none
is, on with the document of those left that has the fewest related ones, since others lead back to it least often.

Legend: D documents, N directed pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def find_path(num_documents: int, from_N: Numbers, to_N: Numbers) -> Numbers:
    """int64[D]: the documents in the order in which they are come to.

    Args:
        from_N: documents are numbered from 0.
        to_N: related to the document in `from_N`; of each document the nearest first.
    """
    order_N = np.argsort(from_N, kind="stable")
    degree_D = np.bincount(from_N, minlength=num_documents)
    ends_D = np.cumsum(degree_D)
    to_N = to_N[order_N]
    is_left_D = np.ones(num_documents, bool)
    path: list[int] = []
    for start in np.argsort(degree_D, kind="stable").tolist():
        here = start if is_left_D[start] else None
        while here is not None:
            is_left_D[here] = False
            path.append(here)
            related = to_N[ends_D[here] - degree_D[here] : ends_D[here]]
            left = related[is_left_D[related]]
            here = int(left[0]) if len(left) else None
    return np.asarray(path, np.int64)
