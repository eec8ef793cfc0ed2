"""The classes of ImageNet by name, as `flashtorch.utils.imagenet` looks them up."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping
from pathlib import Path

_NAMES = Path(__file__).with_name("imagenet.txt")  # a name a line, in the order of the classes


class ImageNetIndex(Mapping[str, "int | None"]):
    """The 1000 class names of ImageNet and their indices, found by a part of a name, too.

    A phrase is looked up as a whole name, then by its words that are whole names, then by its words as parts of names.

    >>> index = ImageNetIndex()
    >>> index["goldfish"], index["Dalmatian dog"], index["foxhound"], index["unicorn"]
    (1, 251, 167, None)
    """

    def __init__(self) -> None:
        self._index = {name: n for n, name in enumerate(_NAMES.read_text("utf-8").splitlines())}

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, key: object) -> bool:
        """Whether it is a part of a name, in lower case as these are."""
        if not isinstance(key, str):
            raise TypeError(f"a class name is a string, got {type(key).__name__}")
        return any(key in name for name in self._index)

    def __getitem__(self, phrase: str) -> int | None:
        """The class; None if no name fits, ValueError with the names if several do, TypeError for no string."""
        if not isinstance(phrase, str):
            raise TypeError(f"Target class needs to be a string, got {type(phrase).__name__}")
        if phrase in self._index:
            return self._index[phrase]
        matches = self._matches(phrase.lower().split())
        if len(matches) > 1:
            raise ValueError(f"Multiple potential matches found for {phrase!r}: {', '.join(matches)}")
        return self._index[matches[0]] if matches else None

    def keys(self) -> KeysView[str]:
        """The names, in the order of the classes."""
        return self._index.keys()

    def items(self) -> ItemsView[str, int | None]:
        """Names and indices."""
        return ItemsView(self._index)

    def _matches(self, words: list[str]) -> list[str]:
        whole = [word for word in words if word in self._index]
        parts = [name for word in words for name in self._index if word in name]
        return list(dict.fromkeys(whole or parts))
