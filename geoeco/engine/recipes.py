"""The recipe: what a run reads, on which grid, and which steps it takes. The cluster is not in it."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from geoeco.engine.documents import Document, KeyPath, apply_setting, nearest, parse_yaml
from geoeco.engine.verbs import NAME_PATTERN, StepSettings
from geoeco.errors import InputError, RecipeError

if TYPE_CHECKING:
    from geoeco.engine.planning import Plan
    from geoeco.engine.registry import Registry
    from geoeco.engine.runs import Run

__all__ = ["Grid", "Imagery", "Inputs", "Recipe", "RecipePath", "recipe_path"]

#: Where a recipe may read from, beside files.
URL_SCHEMES = frozenset({"http", "https", "s3", "gs", "gcs", "az", "abfs", "memory"})
#: Folders of a run that are the engine's own.
RESERVED_NAMES = frozenset({"ledger", "logs"})


def checked_path(name: str) -> str:
    """Refuse names by which a recipe could reach where its reader would not expect it.

    A recipe names files by a plain relative name below its own folder, by an absolute path, or by a URL; the last two
    are plain to see for whoever runs it. Anything that reaches elsewhere under the guise of a relative name (``..``,
    ``~``, environment variables) or through another driver (``file:``, ``/vsi...``) is refused.
    """
    text = name.strip()
    if not text or "\0" in text or "\n" in text:
        raise ValueError("a path must be one line of text")
    if text.lower().lstrip("/").startswith("vsi"):
        raise ValueError(f"{name!r}: GDAL's virtual file systems are not allowed; give a path or a URL")
    split = urlsplit(text)
    is_drive = len(split.scheme) == 1
    if split.scheme and not is_drive:
        if split.scheme.lower() not in URL_SCHEMES:
            raise ValueError(
                f"{name!r}: {split.scheme}: is not a way to name a file here; give a plain path, or one of "
                + ", ".join(sorted(URL_SCHEMES - {"memory"}))
            )
        if "@" in split.netloc:
            raise ValueError("a URL in a recipe must not hold a user name or password")
        return text
    if re.search(r"\$\w|\$\{|%\w+%", text):
        raise ValueError(f"{name!r}: environment variables are not expanded in recipes; write the path out")
    if text.startswith("~"):
        raise ValueError(f"{name!r}: '~' is not expanded in recipes; write the path out")
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return text
    if ".." in re.split(r"[/\\]", text):
        raise ValueError(f"{name!r} leads out of the recipe's folder; give an absolute path if that is meant")
    return text


#: A file, folder or URL named by a recipe; relative names start from the recipe's folder.
RecipePath = Annotated[str, AfterValidator(checked_path)]


def recipe_path(name: str, folder: str) -> str:
    """Absolute path or URL of a name in a recipe.

    Parameters
    ----------
    name : str
    folder : str
        The recipe's folder, a local path.

    Raises
    ------
    InputError
        If the name is one that recipes may not use.
    """
    try:
        text = checked_path(name)
    except ValueError as error:
        raise InputError(str(error), where=name, code="recipe") from error
    scheme = urlsplit(text).scheme
    if len(scheme) > 1 or Path(text).is_absolute():
        return text
    return str(Path(folder) / text)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Imagery(_Part):
    """Which imagery a run looks for."""

    catalog: RecipePath = Field(description="catalogue, collection or item collection (JSON), or a STAC API")
    collections: tuple[str, ...] | None = Field(default=None, description="collections to search; all when not given")
    period: tuple[dt.date, dt.date] = Field(description="first and last day, both included")
    max_cloud_cover: float | None = Field(
        default=None, ge=0, le=100, description="percent, by the items' own eo:cloud_cover"
    )
    sign: str | None = Field(
        default=None, description="how asset addresses are signed: planetary-computer, or a hook's name"
    )
    allow: tuple[str, ...] = Field(default=(), description="further places that the catalogue's assets may lie in")

    @field_validator("period")
    @classmethod
    def _ordered(cls, value: tuple[dt.date, dt.date]) -> tuple[dt.date, dt.date]:
        if value[1] < value[0]:
            raise ValueError(f"the period ends ({value[1]}) before it begins ({value[0]})")
        return value


class Inputs(_Part):
    """What a run reads."""

    imagery: Imagery | None = Field(default=None, description="satellite scenes, by catalogue")
    tables: dict[str, RecipePath] = Field(default={}, description="named tables or rasters that steps use")


class Grid(_Part):
    """On which pixels a run works."""

    like: RecipePath | None = Field(
        default=None,
        description="named table of the inputs, or a file: its grid, made coarser where resolution is given",
    )
    area: tuple[float, float, float, float] | RecipePath | None = Field(
        default=None,
        description="west, south, east, north in degrees, or a vector file; the extent of the imagery when not given",
    )
    crs: str | int = Field(default="utm", description="utm (zone of the area's centre), EPSG:..., or WKT")
    resolution: float | None = Field(
        default=None, gt=0, description="pixel size in the units of the CRS; 10, or that of like, when not given"
    )
    block: int = Field(default=1024, ge=16, le=16384, description="edge of a block in pixels")

    @property
    def pixel(self) -> float:
        """Pixel size of a grid that is not like another one."""
        return 10.0 if self.resolution is None else self.resolution

    @model_validator(mode="after")
    def _like_or_area(self) -> Self:
        if self.like is not None and (self.area is not None or self.crs != "utm"):
            raise ValueError("a grid is like a raster, or it has an area and a CRS: leave out area and crs, or like")
        return self

    @field_validator("crs")
    @classmethod
    def _is_crs(cls, value: str | int) -> str | int:
        if isinstance(value, str) and value.lower() == "utm":
            return "utm"
        from geoeco.errors import GridError
        from geoeco.grid import as_crs

        try:
            as_crs(value)
        except GridError as error:
            raise ValueError(f"{error.what}; {error.what_to_do}") from error
        return value

    @field_validator("area")
    @classmethod
    def _is_box(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            from geoeco.errors import GridError
            from geoeco.grid import bbox_geometry

            try:
                bbox_geometry(value)
            except GridError as error:
                raise ValueError(f"{error.what}; {error.what_to_do}") from error
        return value


class Recipe(BaseModel):
    """A recipe: inputs, a grid, and steps.

    Read one with `Recipe.load`. This base knows no verbs; `geoeco.engine.Registry.recipe_type` makes the type that
    does (``geoeco.Recipe``).

    Examples
    --------
    >>> recipe = geoeco.Recipe.load("quickstart.yaml")  # doctest: +SKIP
    >>> recipe.plan()  # doctest: +SKIP
    >>> run = recipe.run("out")  # doctest: +SKIP
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    registry: ClassVar[Registry]

    geoeco: Literal[1] = Field(description="version of the recipe format")
    name: str = Field(pattern=NAME_PATTERN, description="name of the run")
    description: str = Field(default="", description="what it is for, in a sentence")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of everything random")
    inputs: Inputs = Field(default=Inputs(), description="what the run reads")
    grid: Grid | None = Field(default=None, description="on which pixels it works")
    steps: tuple[SerializeAsAny[StepSettings], ...] = Field(min_length=1, description="what to do, in this order")

    _folder: str = PrivateAttr("")
    _text: str = PrivateAttr("")

    @model_validator(mode="after")
    def _names(self) -> Self:
        seen: set[str] = set()
        for settings in self.steps:
            if settings.step.lower() in seen:
                raise ValueError(f"two steps are named {settings.step!r}; give one of them another 'name'")
            if settings.step.lower() in RESERVED_NAMES:
                raise ValueError(f"a step cannot be named {settings.step!r}: that folder is the run's own")
            seen.add(settings.step.lower())
        return self

    @classmethod
    def load(cls, path: str | Path, *, settings: Iterable[str] = ()) -> Self:
        """Read and check a recipe file.

        Parameters
        ----------
        path : str or Path
            A YAML file.
        settings : iterable of str
            ``key=value`` changes applied before the check, as ``--set`` on the command line.

        Raises
        ------
        RecipeError
            Naming file, line, key, what was expected and the nearest valid name.
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"the recipe cannot be read: {error}",
                where=str(path),
                what_to_do="`geoeco recipes list` shows the recipes that come with geoeco",
            ) from error
        return cls.parse(text, folder=str(source.resolve().parent), source=str(path), settings=settings)

    @classmethod
    def parse(cls, text: str, *, folder: str, source: str = "<text>", settings: Iterable[str] = ()) -> Self:
        """Check a recipe given as text.

        Parameters
        ----------
        text : str
        folder : str
            Folder that relative names start from.
        source : str
            File name for messages.
        settings : iterable of str
            As in `load`.
        """
        document = parse_yaml(text, source)
        for setting in settings:
            document = apply_setting(document, setting)
        if not isinstance(document.data, dict):
            raise RecipeError("a recipe is a mapping of keys to values", where=source)
        recipe = cls._checked(document)
        recipe._folder = folder
        recipe._text = text
        return recipe

    @classmethod
    def from_document(cls, data: dict[str, Any], *, folder: str, source: str = "run.json") -> Self:
        """Check a recipe given as plain data (`document`), as a run folder keeps it."""
        recipe = cls._checked(Document(data, {}, source))
        recipe._folder = folder
        recipe._text = json.dumps(data, indent=2)
        return recipe

    @classmethod
    def _checked(cls, document: Document) -> Self:
        try:
            return cls.model_validate(document.data)
        except ValidationError as error:
            raise _recipe_error(cls, error, document) from error

    def document(self) -> dict[str, Any]:
        """Plain data of the whole recipe, defaults filled in; `from_document` reads it back."""
        return self.model_dump(mode="json")

    @property
    def folder(self) -> str:
        """Folder that relative names start from."""
        return self._folder

    @property
    def text(self) -> str:
        """The recipe as it was written."""
        return self._text

    def table_path(self, name: str, folder: str | None = None) -> str:
        """Absolute path or URL of a named table of the inputs.

        Raises
        ------
        InputError
            If there is no such table.
        """
        try:
            return recipe_path(self.inputs.tables[name], folder or self.folder)
        except KeyError:
            like = nearest(name, list(self.inputs.tables))
            raise InputError(
                f"the recipe's inputs have no table {name!r}" + (f"; did you mean {like!r}?" if like else ""),
                where="inputs.tables",
                what_to_do=f"tables: {', '.join(self.inputs.tables) or 'none'}",
                code="recipe",
            ) from None

    def plan(self, **options: Any) -> Plan:
        """Plan the run without doing anything; see `geoeco.engine.make_plan`."""
        from geoeco.engine.planning import make_plan

        return make_plan(self, **options)

    def run(self, out: str | Path, client: Any = None, **options: Any) -> Run:
        """Run the recipe, or resume it where it stopped; see `geoeco.engine.run_recipe`.

        Parameters
        ----------
        out : str or Path
            Run folder: a path or an fsspec URL.
        client : distributed.Client, optional
            None works in this process.
        """
        from geoeco.engine.driver import run_recipe

        return run_recipe(self, out, client, **options)


def _recipe_error(recipe: type[Recipe], error: ValidationError, document: Document) -> RecipeError:
    """One error that lists what is wrong with each key: file, line, expected, nearest."""
    found: list[tuple[str, str]] = []
    details = error.errors(include_url=False)
    if len(details) > 1:  # pydantic also counts a list as too short when its members are wrong
        details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] != ("steps",)]
    for detail in details:
        path, tags = _key_path(detail["loc"], document.data)
        kind, context = detail["type"], detail.get("ctx", {})
        given = detail.get("input")
        valid: list[str] = []
        subject = ""
        if kind == "extra_forbidden":
            subject = str(path[-1])
            valid = _keys_at(recipe, path[:-1], tags)
            message = f"unknown key {subject!r}"
        elif kind == "missing":
            message = f"the key {path[-1]!r} is missing"
        elif kind == "union_tag_invalid":
            subject, valid = (
                str(context.get("tag", "")),
                re.findall(r"'([^']*)'", str(context.get("expected_tags", ""))),
            )
            message = f"there is no verb {subject!r}"
            path = (*path, "verb")
        elif kind == "union_tag_not_found":
            message = "the key 'verb' is missing: each step says which verb it is"
        elif kind in ("literal_error", "enum"):
            subject, valid = str(given), re.findall(r"'([^']*)'", str(context.get("expected", "")))
            message = f"{given!r}: expected {context.get('expected')}"
        elif kind == "value_error":
            message = str(context.get("error", detail["msg"]))
        else:
            message = f"{_lower_first(detail['msg'].replace('Input should', 'should'))}, not {_short(given)}"
        like = nearest(subject, valid) if subject else None
        if like:
            message += f"; did you mean {like!r}?"
        elif valid and len(valid) <= 40:
            message += f"; valid: {', '.join(valid)}"
        found.append((document.where(path), message))
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        return RecipeError(found[0][1], where=found[0][0], what_to_do="`geoeco schema` shows every key of a recipe")
    lines = "".join(f"\n  {where}: {message}" for where, message in found[:20])
    return RecipeError(
        f"{len(found)} things are wrong with the recipe:{lines}",
        where=document.source,
        what_to_do="`geoeco schema` shows every key of a recipe",
    )


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _key_path(loc: Sequence[str | int], data: Any) -> tuple[KeyPath, tuple[str, ...]]:
    """Key path in the document of pydantic's location, which also names union members on its way."""
    path: list[str | int] = []
    tags: list[str] = []
    node = data
    for index, part in enumerate(loc):
        if isinstance(node, dict) and (part in node or index == len(loc) - 1 or not _is_tag(node, part)):
            path.append(part)
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            path.append(part)
            node = node[part] if 0 <= part < len(node) else None
        else:
            tags.append(str(part))
    return tuple(path), tuple(tags)


def _is_tag(node: dict[str, Any], part: str | int) -> bool:
    return node.get("verb") == part or "[" in str(part) or part in ("str", "int", "float", "tuple", "dict", "list")


def _keys_at(model: type[BaseModel], path: KeyPath, tags: Sequence[str]) -> list[str]:
    """List the valid keys of the part of a recipe that a key path leads to."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        found: list[type[BaseModel]] = []
        for candidate in models:
            if isinstance(part, int):
                found.append(candidate)
            elif part in candidate.model_fields:
                found.extend(_models_in(candidate.model_fields[part].annotation))
        models = found
        chosen = [
            m
            for m in models
            if "verb" in m.model_fields and set(get_args(m.model_fields["verb"].annotation)) & set(tags)
        ]
        models = chosen or models
    return sorted({name for candidate in models for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
