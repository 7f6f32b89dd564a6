"""The stores there are: name → class. README.md describes each format byte for byte."""

from __future__ import annotations

from featprep.stores.npy_tree import NpyTreeStore

STORES = {"npy_tree": NpyTreeStore}
