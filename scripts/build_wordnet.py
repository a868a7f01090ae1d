"""Build the arrays of the embedded data set ``wordnet`` from a WordNet 3.0 database.

    python scripts/build_wordnet.py DICT_FOLDER OUT

``DICT_FOLDER`` holds ``data.noun`` and ``index.noun`` (``dict/`` of WordNet 3.0, or
``/usr/share/wordnet`` of Debian's package ``wordnet-base``). ``OUT`` is a folder; it receives
``wordnet.npz`` and ``WORDNET-LICENSE.txt``. The same input gives the same bytes.

Nodes are the noun synsets in the order of the database; edges are pointers from noun to noun
of every kind, without direction; labels are lexicographer files; features are the words of the
gloss. Neither a synset's own words nor its lexicographer file go into the features.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import CountVectorizer

VOCABULARY_SIZE = 5_000
FIRST_NOUN_FILE = 3  # lexicographer files 3 to 28 hold the nouns (lexnames(5WN))
LICENCE_LINES = 29  # every database file opens with the licence, numbered lines


@dataclass(frozen=True)
class Synset:
    """One line of ``data.noun`` (wndb(5WN))."""

    offset: int
    lexicographer_file: int
    first_word: str
    noun_pointers: tuple[int, ...]
    gloss: str


def parse_synset(line: str) -> Synset:
    """Read a data line: ``offset file type w_cnt (word id)* p_cnt (pointer)* | gloss``."""
    fields, _, gloss = line.partition(" | ")
    part = fields.split()
    first_pointer = 4 + 2 * int(part[3], 16) + 1
    pointers = [part[k : k + 4] for k in range(first_pointer, len(part), 4)]
    if len(pointers) != int(part[first_pointer - 1]):
        raise SystemExit(f"data.noun: synset {part[0]} does not hold the pointers it counts.")
    return Synset(
        offset=int(part[0]),
        lexicographer_file=int(part[1]),
        first_word=part[4].lower(),
        noun_pointers=tuple(int(target) for _, target, kind, _ in pointers if kind == "n"),
        gloss=gloss.strip(),
    )


def data_lines(path: Path) -> Iterator[str]:
    """Yield the lines below the licence, which alone begin without a space."""
    with path.open(encoding="ascii") as lines:
        yield from (line for line in lines if not line.startswith(" "))


def read_licence(path: Path) -> str:
    """The licence at the head of a database file, without its line numbers."""
    with path.open(encoding="ascii") as lines:
        head = [next(lines) for _ in range(LICENCE_LINES)]
    return "".join(line.strip().partition(" ")[2].rstrip() + "\n" for line in head)


def read_senses(path: Path) -> dict[tuple[str, int], int]:
    """Sense number of (word, offset), from 1, by the order of offsets in ``index.noun``."""
    senses = {}
    for line in data_lines(path):
        part = line.split()
        offsets = part[-int(part[2]) :]
        for sense, offset in enumerate(offsets, start=1):
            senses[part[0], int(offset)] = sense
    return senses


def synset_names(synsets: list[Synset], senses: dict[tuple[str, int], int]) -> list[str]:
    """Customary names, such as ``entity.n.01``: first word, part of speech, sense."""
    return [f"{s.first_word}.n.{senses[s.first_word, s.offset]:02d}" for s in synsets]


def undirected_edges(synsets: list[Synset]) -> npt.NDArray[np.int64]:
    """Pairs ``[E, 2]`` with ``source < target``, sorted, each once, no self-loops."""
    node = {synset.offset: row for row, synset in enumerate(synsets)}
    pairs = [(row, node[t]) for row, synset in enumerate(synsets) for t in synset.noun_pointers]
    ends = np.sort(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=1)
    return np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)


def gloss_words(
    synsets: list[Synset],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
    """Binary bag of words of the glosses: CSR ``indptr`` and ``indices``, and the vocabulary.

    The words are those in most glosses, ties in alphabetical order, English stop words left
    out; the vocabulary is stored in alphabetical order.
    """
    vectorizer = CountVectorizer(binary=True, stop_words="english", token_pattern=r"[a-z]{2,}")
    counts = vectorizer.fit_transform([synset.gloss for synset in synsets]).tocsc()
    words = vectorizer.get_feature_names_out()  # alphabetical
    most_frequent = np.argsort(-np.diff(counts.indptr), kind="stable")[:VOCABULARY_SIZE]
    kept = np.sort(most_frequent)
    bag = counts[:, kept].tocsr()
    bag.sort_indices()
    return bag.indptr.astype(np.int64), bag.indices.astype(np.int64), words[kept].tolist()


def as_bytes(lines: list[str]) -> npt.NDArray[np.uint8]:
    """Text as an array, one line each: arrays of strings would need pickles."""
    return np.frombuffer("\n".join(lines).encode("ascii"), dtype=np.uint8)


def build_arrays(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """All arrays of the data set; rows as counts and gaps, which compress well."""
    synsets = [parse_synset(line) for line in data_lines(folder / "data.noun")]
    edges = undirected_edges(synsets)
    indptr, indices, words = gloss_words(synsets)
    labels = [synset.lexicographer_file - FIRST_NOUN_FILE for synset in synsets]
    return {
        "labels": np.array(labels, dtype=np.uint8),
        "edges_per_source": np.bincount(edges[:, 0], minlength=len(synsets)).astype(np.uint16),
        "edge_span": (edges[:, 1] - edges[:, 0]).astype(np.uint32),
        "words_per_gloss": np.diff(indptr).astype(np.uint8),
        "word_index": indices.astype(np.uint16),
        "vocabulary": as_bytes(words),
        "names": as_bytes(synset_names(synsets, read_senses(folder / "index.noun"))),
    }


def write_npz(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    """Write an ``.npz`` that ``numpy.load`` reads, with LZMA and without the time of day."""
    aside = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(aside, "w", compression=zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # otherwise the bytes would tell Windows from the rest
            entry.compress_type = zipfile.ZIP_LZMA
            archive.writestr(entry, buffer.getvalue())
    os.replace(aside, path)


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dict_folder", type=Path, help="folder of data.noun and index.noun")
    parser.add_argument("out", type=Path, help="folder that receives the two files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_npz(options.out / "wordnet.npz", build_arrays(options.dict_folder))
    licence = read_licence(options.dict_folder / "data.noun")
    (options.out / "WORDNET-LICENSE.txt").write_text(licence, encoding="ascii")


if __name__ == "__main__":
    main()
