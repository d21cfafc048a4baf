"""``python -m l0compress`` is the command line."""

from __future__ import annotations

from l0compress.cli import main

if __name__ == "__main__":
    main()
