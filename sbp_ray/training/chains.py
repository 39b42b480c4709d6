"""Documents that see one another: several behind one another in a row, packed and attended to as if they were one.

A chain is written `<bos> first <eos> <bos> second <eos> …`. Its first token has nothing before it and is no target, as
everywhere; every other one is. One that is longer than a row is cut as a long document is.

`related_chain` makes one of all documents of a piece of the path through related ones (`in_context_rows`), `megadocs`
one of each d1 with what was written from it.

Legend: D documents, M members of all chains, C chains.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.text.packing import Numbers
from sbp_ray.text.pair_format import DOCUMENT_MARKS, join_tokens
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.packed import TokenLists


class Chains:
    """The text of each chain, in the place of a document's: without the first <bos> and the last <eos>."""

    def __init__(self, documents: TokenLists, member_M: Numbers, ends_C: Numbers, special: SpecialIds) -> None:
        """`ends_C` says where each chain ends in `member_M`, which holds the documents' numbers; no chain is empty."""
        self._documents, self._member_M, self._ends_C = documents, member_M, ends_C
        self._between = [special.eos, special.bos]
        length_M = documents.length_D[member_M] + DOCUMENT_MARKS
        self.length_D: Numbers = np.diff(np.cumsum(length_M)[ends_C - 1], prepend=0) - DOCUMENT_MARKS

    def of(self, chain: int) -> NDArray[np.int32]:
        start, end = self._ends_C[chain - 1] if chain else 0, self._ends_C[chain]
        members = [self._documents.of(number) for number in self._member_M[start:end].tolist()]
        parts = [part for tokens in members for part in (self._between, tokens)]
        return join_tokens(*parts[1:])


def megadocs(written: pa.Table, documents: pa.Table, special: SpecialIds) -> Chains:
    """A chain for each d1: what was written from it, in order, and d1 last.

    Args:
        written: `d1_id` and `input_ids` of a synthetic shard, which lie together by d1.
        documents: `doc_id` and `input_ids` of the corpus shard that holds the d1.

    Raises:
        SbpError: a d1 is not there.
    """
    d1_ids = written["d1_id"].combine_chunks()
    each_d1 = pc.unique(d1_ids)
    row_C = pc.index_in(each_d1, value_set=documents["doc_id"].combine_chunks())
    if row_C.null_count:
        missing = each_d1.filter(pc.is_null(row_C))[0].as_py().hex()
        raise SbpError(f"d1 {missing} of the synthetic text is not in the corpus shard of its number: redo synthesize")
    chain_D = pc.index_in(d1_ids, value_set=each_d1).to_numpy()
    written_C = np.bincount(chain_D, minlength=len(each_d1))
    ends_C = np.cumsum(written_C + 1)
    lists = TokenLists(pa.chunked_array([*written["input_ids"].chunks, *documents["input_ids"].chunks]))
    member_M = np.empty(len(written) + len(each_d1), np.int64)
    is_d1_M = np.zeros(len(member_M), bool)
    is_d1_M[ends_C - 1] = True
    member_M[~is_d1_M] = np.argsort(chain_D, kind="stable")
    member_M[is_d1_M] = len(written) + row_C.to_numpy()
    return Chains(lists, member_M, ends_C, special)


def related_chain(doc_ids: pa.ChunkedArray, documents: pa.Table, special: SpecialIds) -> Chains:
    """One chain of all documents, in the order of `doc_ids`; none where there is none."""
    member_M = pc.index_in(doc_ids, value_set=documents["doc_id"].combine_chunks()).to_numpy().astype(np.int64)
    ends_C = np.array([len(member_M)] if len(member_M) else [], np.int64)
    return Chains(TokenLists(documents["input_ids"]), member_M, ends_C, special)


def read_megadocs(synthetic: Artifact, file: str, corpus: Artifact, special: SpecialIds) -> Chains:
    """Of one synthetic shard: its d1 lie in the corpus shard of the same number."""
    written = synthetic.read_table(file, columns=["d1_id", "input_ids"])
    documents = corpus.read_table(f"train/{file}", columns=["doc_id", "input_ids"])
    return megadocs(written, documents, special)
