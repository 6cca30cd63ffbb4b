"""HTML pages that open from disk: of a run, and of the reader's own tracks."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, **values) -> str:
    """Return a page from a template of this package, whose values are escaped."""
    loader = PackageLoader("app", "")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    return environment.get_template(name).render(values)
