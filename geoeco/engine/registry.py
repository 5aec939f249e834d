"""Which verbs there are, and the recipe type that knows them all.

The engine fills no registry: ``geoeco.steps`` registers its verbs, and other packages bring theirs by an entry point
of the group ``geoeco.steps``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args

from pydantic import Field, create_model

from geoeco.engine.documents import nearest
from geoeco.engine.recipes import Recipe
from geoeco.engine.verbs import StepSettings, Verb
from geoeco.errors import InputError

__all__ = ["ENTRY_POINT_GROUP", "Registry"]

#: Entry points of this group name `Verb` classes of other packages.
ENTRY_POINT_GROUP = "geoeco.steps"


class Registry:
    """The verbs that recipes may use.

    Examples
    --------
    In ``geoeco/steps/__init__.py``::

        registry = Registry()
        for verb in (CubeVerb, SeasonsVerb):
            registry.register(verb)
        registry.load_entry_points()
        Recipe = registry.recipe_type(__name__)
    """

    def __init__(self) -> None:
        self._verbs: dict[str, type[Verb]] = {}

    def __iter__(self) -> Iterator[type[Verb]]:
        return iter(self._verbs.values())

    def __contains__(self, name: object) -> bool:
        return name in self._verbs

    @property
    def names(self) -> list[str]:
        """Names of the verbs, in the order of registration."""
        return list(self._verbs)

    def register(self, verb: type[Verb]) -> type[Verb]:
        """Add a verb; may be used as a class decorator.

        Raises
        ------
        InputError
            If it is no verb, its settings do not carry its name, or the name is taken.
        """
        if not (isinstance(verb, type) and issubclass(verb, Verb)):
            raise InputError(f"{verb!r} is not a subclass of geoeco.engine.Verb")
        settings = getattr(verb, "Settings", None)
        if not (isinstance(settings, type) and issubclass(settings, StepSettings)):
            raise InputError(f"the verb {verb.__name__} has no Settings derived from StepSettings")
        annotation = settings.model_fields["verb"].annotation
        if get_args(annotation) != (verb.name,):
            raise InputError(
                f"the settings of the verb {verb.name!r} must declare verb: Literal[{verb.name!r}]",
                where=settings.__name__,
            )
        if self._verbs.get(verb.name, verb) is not verb:
            raise InputError(
                f"two verbs are named {verb.name!r}",
                where=f"{self._verbs[verb.name].__module__} and {verb.__module__}",
                what_to_do="rename one, or uninstall one of the packages",
            )
        self._verbs[verb.name] = verb
        return verb

    def load_entry_points(self, group: str = ENTRY_POINT_GROUP) -> list[str]:
        """Register the verbs of installed packages; returns their names.

        Raises
        ------
        InputError
            If an entry point cannot be loaded or is no verb.
        """
        loaded = []
        for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda e: (e.name, e.value)):
            try:
                verb = entry.load()
            except Exception as error:
                raise InputError(
                    f"the verb {entry.name!r} of another package cannot be loaded: {error}",
                    where=entry.value,
                    what_to_do="repair or uninstall that package",
                ) from error
            loaded.append(self.register(verb).name)
        return loaded

    def verb(self, name: str) -> Verb:
        """Return an instance of the verb of this name.

        Raises
        ------
        InputError
            If there is none.
        """
        try:
            return self._verbs[name]()
        except KeyError:
            like = nearest(name, self.names)
            raise InputError(
                f"there is no verb {name!r}" + (f"; did you mean {like!r}?" if like else ""),
                what_to_do=f"verbs: {', '.join(self.names)}",
            ) from None

    def recipe_type(self, module: str) -> type[Recipe]:
        """Build the recipe type whose steps are a union of all verbs' settings, told apart by ``verb``.

        Parameters
        ----------
        module : str
            Name of the module that holds the type as ``Recipe``, so that recipes pickle.
        """
        if not self._verbs:
            raise InputError("no verb is registered")
        kinds = tuple(verb.Settings for verb in self._verbs.values())
        step: Any = Annotated[Union[kinds], Field(discriminator="verb")] if len(kinds) > 1 else kinds[0]  # noqa: UP007
        made: type[Recipe] = create_model(
            "Recipe",
            __base__=Recipe,
            __module__=module,
            __doc__=Recipe.__doc__,
            steps=(tuple[step, ...], Field(min_length=1, description="what to do, in this order")),
        )
        made.registry = self
        return made
