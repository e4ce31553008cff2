"""HTML pages that open offline: whatever strangers wrote is escaped, and pictures lie in the page."""

import base64
from typing import Any


def render_page(package: str, template: str, **values: Any) -> str:
    """Fill a page's template.

    Args:
        package: Package in whose folder the template lies.
        template: Name of its file.
        values: What it shows; texts are escaped. A value that is missing raises `jinja2.UndefinedError`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """A picture as an address that holds it.

    Args:
        content: The file's bytes.
        kind: Its MIME subtype, e.g. "png".

    Example:
        >>> data_uri(b"x", "png")
        'data:image/png;base64,eA=='
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
