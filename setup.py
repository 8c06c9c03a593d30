"""What package indexes show in place of README.md; all the rest is in pyproject.toml.

A link into the project leads nowhere on their pages: there its text stands alone, without pictures.
"""

import re
from pathlib import Path

from setuptools import setup

readme = Path("README.md").read_text(encoding="utf-8")
elsewhere = r"\((?!https?:|#)[^)\s]+\)"
readme = re.sub(rf"!\[[^\]]*\]{elsewhere}\n*", "", readme)
readme = re.sub(rf"\[([^\]]*)\]{elsewhere}", r"\1", readme)
setup(long_description=readme, long_description_content_type="text/markdown")
