"""Names for components, so that a config or a test can go through all of one kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from flowrl.errors import close_match

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Registry"]

Component = TypeVar("Component")


class Registry(dict[str, Component]):
    """A dict from name to component whose entries are added by a decorator and never silently replaced."""

    def __init__(self, kind: str) -> None:
        """Start empty; ``kind`` is the word that error messages use, e.g. ``"objective"``."""
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Component], Component]:
        """Return the decorator that enters its argument under ``name``.

        Raises:
            ValueError: If the name is taken.
        """

        def enter(component: Component) -> Component:
            if name in self:
                raise ValueError(f"the {self.kind} {name!r} is registered already, as {self[name]}; choose another name")
            self[name] = component
            return component

        return enter

    def __missing__(self, name: str) -> Component:
        """Refuse an unknown name and suggest the closest one."""
        raise KeyError(f"no {self.kind} is called {name!r}{close_match(name, self)}")
