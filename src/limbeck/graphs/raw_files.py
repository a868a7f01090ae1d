"""Data sets in PyG's raw layout for which PyG has no class of its own."""

from __future__ import annotations

from pathlib import Path

from torch_geometric.data import InMemoryDataset, download_url
from torch_geometric.datasets import HeterophilousGraphDataset
from torch_geometric.io import read_npz


class CPF(InMemoryDataset):  # type: ignore[misc]  # PyG has no type information
    """Cora and CiteSeer as CPF and GLNN use them: ``cpf/cora.npz``, ``cpf/citeseer.npz``.

    Nodes and classes come in another order than in ``Planetoid``.

    Args:
        root: Folder that holds ``cpf``.
        name: ``"cora"`` or ``"citeseer"``.
    """

    # byte for byte the files of BUPT-GAMMA/CPF, which states no licence
    url = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz"

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        super().__init__(root)
        self.load(self.processed_paths[0])

    @property
    def raw_dir(self) -> str:
        """Folder of the raw file."""
        return str(Path(self.root) / "cpf")

    @property
    def processed_dir(self) -> str:
        """Folder of the processed file."""
        return str(Path(self.root) / "cpf" / "processed" / self.name)

    @property
    def raw_file_names(self) -> str:
        """The one raw file."""
        return f"{self.name}.npz"

    @property
    def processed_file_names(self) -> str:
        """The one processed file."""
        return "data.pt"

    def download(self) -> None:
        """Fetch the raw file."""
        download_url(f"{self.url}/{self.raw_file_names}", self.raw_dir)

    def process(self) -> None:
        """Read the raw file: undirected, without weights and self-loops, features 0/1."""
        self.save([read_npz(self.raw_paths[0])], self.processed_paths[0])


class FilteredWikipediaNetwork(HeterophilousGraphDataset):  # type: ignore[misc]
    """Chameleon and Squirrel without duplicate nodes (Platonov et al., ICLR 2023).

    The files lie beside those of ``HeterophilousGraphDataset`` and have their format, but PyG's
    class has a fixed list of names.

    Args:
        root: Folder that holds ``chameleon_filtered`` or ``squirrel_filtered``.
        name: ``"chameleon_filtered"`` or ``"squirrel_filtered"``.
    """

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        super(HeterophilousGraphDataset, self).__init__(root)  # past the list of names
        self.load(self.processed_paths[0])
