"""What tests of pages share."""

import json
from typing import Any


def data_of(html: str) -> Any:
    """The JSON block of a page, found as a browser does: up to the first end of a script."""
    return json.loads(html.partition('<script type="application/json" id="data">')[2].partition("</script")[0])
