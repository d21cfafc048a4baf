"""HTML from the values of a page, by templates that escape every text."""

from __future__ import annotations

from dataclasses import fields

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from l0compress.measure.page.content import Page

TEMPLATE = "page.html.j2"


def html_of(page: Page) -> str:
    """Return a page as one HTML document that loads nothing: styles and drawings are inside, and there is no script.

    Example:
        >>> html = html_of(Page("<run>", "dense against small"))
        >>> "<h1>&lt;run&gt;</h1>" in html
        True
    """
    environment = Environment(
        loader=PackageLoader("l0compress.measure.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.filters["together"] = together
    values = {field.name: getattr(page, field.name) for field in fields(page)}
    return environment.get_template(TEMPLATE).render(values)


def breakable(name: str) -> Markup:
    """Return a dotted name that may be broken after each dot or underscore.

    >>> breakable("layer1.0<b>")
    Markup('layer1.<wbr>0&lt;b&gt;')
    """
    return Markup("").join(
        Markup("{}<wbr>").format(character) if character in "._/" else Markup("{}").format(character)
        for character in name
    )


def together(text: str) -> str:
    """Return a text that is not broken between a number and its percent sign.

    >>> together("25.0 %")
    '25.0\\xa0%'
    """
    return text.replace(" %", "\u00a0%")
