"""A page that shows a run: values in, one HTML file out, with its drawings and styles inside.

``content`` is what is shown, ``curves`` and ``scatter`` lay drawings out, ``placing`` keeps names apart, ``render``
writes HTML by jinja2's templates, which escape every text.
"""
