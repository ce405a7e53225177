"""What SQLite and PostgreSQL say differently: one question, in the words of each."""

from typing import Any

from sqlalchemy import Boolean, ColumnElement, SQLColumnExpression, Text, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


def holds_text(text: SQLColumnExpression[Any], part: str) -> ColumnElement[bool]:
    """Whether `text` holds `part`, in upper or lower case of any script: `Größe` holds `GRÖSSE`."""
    return _HoldsText(text, literal(part, Text()))


def holds_key(body: SQLColumnExpression[str], field: str, key: str) -> ColumnElement[bool]:
    """Whether the object in `field` of the JSON text `body` has `key`, which may hold quotes and dots."""
    return _HoldsKey(body, literal(field, Text()), literal(key, Text()))


def field_text(body: SQLColumnExpression[str], field: str) -> ColumnElement[str]:
    """A number or text in `field` of the JSON text `body`, as text. `field` is a plain word."""
    return _FieldText(body, literal(field, Text()))


class _HoldsText(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True


class _HoldsKey(FunctionElement[bool]):
    type = Boolean()
    inherit_cache = True


class _FieldText(FunctionElement[str]):
    type = Text()
    inherit_cache = True


def _say(element: type[FunctionElement[Any]], *, sqlite: str, postgresql: str) -> None:
    for dialect, template in (("sqlite", sqlite), ("postgresql", postgresql)):

        @compiles(element, dialect)
        def _compile(
            element: FunctionElement[Any],
            compiler: SQLCompiler,
            template: str = template,
            **options: Any,  # noqa: ANN401  # the compiler's own
        ) -> str:
            return template.format(*(compiler.process(part, **options) for part in element.clauses))


_say(
    _HoldsText,
    # SQLite's own LIKE and lower() know the case of ASCII only; `casefold` is given to each connection.
    sqlite="instr(casefold({0}), casefold({1})) > 0",
    # ICU's upper() knows every script, and makes two letters of one where that is its upper case.
    postgresql="""strpos(upper({0} COLLATE "und-x-icu"), upper({1} COLLATE "und-x-icu")) > 0""",
)
_say(
    _HoldsKey,
    # The key is compared with, not a part of a JSON path.
    sqlite="EXISTS (SELECT 1 FROM json_each({0}, '$.' || {1}) AS one WHERE one.key = {2})",
    postgresql="({0})::json -> {1} -> {2} IS NOT NULL",
)
_say(
    _FieldText,
    sqlite="CAST(json_extract({0}, '$.' || {1}) AS TEXT)",
    postgresql="({0})::json ->> {1}",
)
